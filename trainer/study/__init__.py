"""Experiments before the cluster: the papers' studies on the user's own data."""
