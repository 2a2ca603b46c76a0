"""A run's numbers: measured, written, shown, and read back."""
