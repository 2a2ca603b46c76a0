"""What the user writes: the recipe's fields, their types and defaults, and how a YAML file becomes one."""
