"""What the records say, in numbers: no sentence, no colour and no drawing."""
