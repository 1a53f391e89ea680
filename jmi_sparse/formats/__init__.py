"""How others write dictionaries to disk: one format, one file."""
