"""Train and measure attention variants under the same conditions, and draw what came out."""
