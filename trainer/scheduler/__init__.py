"""The learning rate after t tokens, and what a start means: restore, a new phase, or a refusal with the reason."""
