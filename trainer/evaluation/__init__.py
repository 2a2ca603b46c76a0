"""What was learnt and what was forgotten: losses on held-out text.

`held_out` scores validation sets during a run and compares them with the base's scores; `offline` scores a
model that is not being trained.
"""
