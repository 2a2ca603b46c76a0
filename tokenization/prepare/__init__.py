"""`rewarm data prepare`: a corpus comes in, and token shards go out, however often the job is restarted.

`job` has the files and options that decide the bytes, and their parts; `parts` finds the parts that are
finished. `prepare` runs the rest: `duplicates` are found first, then `workers` (as many as `cpus` allows)
encode blocks in order, and `progress` shows the speed.
"""
