"""The learning rate after t tokens, and what a start means: start, restore, new phase, finished or refuse.

`curves` lays out a schedule as a function of trained tokens. `state` is what a checkpoint keeps of a run:
from it, the recipe and the data, `decide` makes the one `decision` of every start. `edits` finds what the
recipe changed about the past, and `guards` warns about the phases to come, with the numbers of the papers.
"""
