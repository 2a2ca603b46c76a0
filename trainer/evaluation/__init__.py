"""What was learnt and what was forgotten: losses on held-out text, during a run and after it."""
