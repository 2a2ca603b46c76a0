"""Files become documents: which files, which records in them, and which are rejected."""
