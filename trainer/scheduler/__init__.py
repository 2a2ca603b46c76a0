"""The learning rate after t tokens, and what a start means: start, restore, new phase, finished or refuse."""
