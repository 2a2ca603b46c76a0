"""Plan a run before it runs: everything that is known, checked and decided without a process group."""
