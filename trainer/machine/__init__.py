"""Where this process runs: its rank, its devices, its signals and its locks.

`ranks` finds this process among the others and `collectives` are what they do together; `devices` has the
peak speed and the memory of an accelerator. `run_lock` keeps a second job out of a run directory, `signals`
asks a run to save and stop, and `watchdog` prints the stacks of one that hangs, and ends it. `garbage` is
collected where the run has time, `compile_cache` removes stale locks of compiled operations, and `log_lines`
prints what the run logs.
"""
