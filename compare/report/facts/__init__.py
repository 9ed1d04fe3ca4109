"""What the records say: numbers, and the names of what they belong to. No finding, no colour and no drawing."""
