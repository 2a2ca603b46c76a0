"""DeepSpeed: with `machine/collectives`, the only room that knows it.

`ds_config` completes a preset with what the recipe sets, for the `layout` of a global batch, and `defaults`
with what DeepSpeed would choose by itself; `requirements` and `versions` check the machine. `engine` makes
the training step, with `adamw` as its optimizer and `row_lr` for appended embedding rows; `skipping` decides
on the device whether a step is applied, and `result` brings its numbers to the host. `fragments` gives the
state of any ZeRO stage to checkpoints. `selftest` compares all of it with a loop in `plain` PyTorch, and
`diagnosis` names what is wrong.
"""
