"""Which sample is number i, and how much of the old data is replayed.

A recipe's segments become exact weights (`weights`), which order the sources (`interleave`); the samples of
each source are permuted (`permutation`). `mixture` puts the three together into a pure function of the
sample's number, `description` records it in a checkpoint, `loader` reads its samples as `batch`es of
tokens, and `simulate` shows what a run will take before it runs.
"""
