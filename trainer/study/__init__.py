"""Experiments before the cluster: the papers' studies on the user's own data.

`spec` is one arm; `grids` and `resumes` have the studies: a question, the arms that answer it as fields of a
recipe, and what the papers found. `bases` makes the models that arms start from. `series` plans all arms,
trains what they share (`trunk`), then each of them, and tells how far it is (`progress`). `results` reads a
study's directory as a table; `claims` says what the papers found, `verdicts` what the seeds decide of it with
the `intervals` of paired differences, and `page` shows it, as `summary` sums it up. `laws` are fitted to
what the arms have `observed`; `recommend` says which replay, max_lr and warm-up follow, and `recommended`
writes them as a recipe. `line` scores the averages of a base and its continuation, and `own_text` lets the
base write a corpus to replay.
"""
