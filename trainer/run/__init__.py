"""The run: joins the ranks, opens each phase, and trains it."""
