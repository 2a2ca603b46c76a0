"""Measurements that anyone can repeat; each file says first what it measures and how to run it."""
