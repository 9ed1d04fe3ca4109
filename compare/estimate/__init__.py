"""What a comparison will cost, estimated from the records of earlier runs. Only ``command.py`` imports torch."""
