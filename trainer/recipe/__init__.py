"""What the user writes: the recipe's fields, their types and defaults, and how a YAML file becomes one.

`yaml_text` reads the file without guessing types, `numbers` and `fields` read its values exactly, `schema`
and `schedule` are the sections with their checks, and `load` reports all errors of a file at once.
"""
