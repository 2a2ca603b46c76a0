"""Bytes that survive a power cut: the formats and names of files that several rooms share.

`disk` writes files and whole directories, `safetensors` their tensors. A `fragment` is the unit in which the
engine's state goes to checkpoints. `run_directory` names the files of a run, and `hub` finds models.
"""
