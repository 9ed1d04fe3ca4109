"""Facts of the records: numbers and names. No sentences, no colours, no drawing."""
