"""What a report says, one file for each subject: its sentences, tables and charts with their alt texts."""
