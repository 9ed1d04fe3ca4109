"""Train and measure attention variants under the same conditions, and draw the results."""
