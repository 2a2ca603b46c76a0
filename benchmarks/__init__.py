"""Measurements that anyone can repeat; each file says in its first lines what it measures and how to run it."""
