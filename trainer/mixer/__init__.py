"""Which sample is number i, and how much of the old data is replayed."""
