"""Where this process runs: its rank, its devices, its signals, its locks."""
