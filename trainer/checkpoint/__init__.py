"""A run that can be picked up: written by every rank, committed last, loaded on any topology, exported."""
