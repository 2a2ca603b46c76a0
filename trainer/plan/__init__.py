"""A run before it runs: everything that is known, checked and decided without a process group.

`make` reads what the recipe names (`data` opens the shards), fits the model (`memory`), the batch and the
mixture to the machine, and asks the scheduler what this start means; `checks` collects the errors of all of
them, so that they are reported at once. `render` writes the plan for people and programs.
"""
