"""Experiments before the cluster: the papers' studies on the user's own data.

`grids` has the studies: a question, the arms that answer it as overrides of a recipe, and what the papers
found. `series` plans all arms, trains them one after another or lists them for a job array, and writes a page
about them.
"""
