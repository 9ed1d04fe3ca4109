"""Files of a report: each goes through its sections, and knows no task and no subject."""
