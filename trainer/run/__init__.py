"""The run: a plan is trained from its first step to its last.

`start` joins the ranks, takes the run lock and verifies the checkpoint; `phases` opens one phase after
another, with its engine (whose memory `fitting` tries first), loader and validation; `loop` is the training
loop. What the loop works with is a `session`: the position in the run, and what is due there. `health` judges
the steps, and `left_out` records the samples that a run passes over. `step_log` collects metrics, `saving`
commits checkpoints, and `validation` scores held-out text.
"""
