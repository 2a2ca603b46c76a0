"""Save a run so that any topology can continue it, and export it.

To save, each rank writes its fragments (`rank_files`), at once or from a `snapshot`, and rank 0 commits
the `manifest` last (`save`). `history` lists, quarantines and prunes the checkpoints of a run, `load` fills
an engine from one, and `export` writes one as a Hugging Face model, with its `card`.
"""
