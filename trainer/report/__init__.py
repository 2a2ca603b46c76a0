"""Looking back on any runs: their histories, figures, and one page."""
