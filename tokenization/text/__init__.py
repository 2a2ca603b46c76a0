"""Files come in, and documents go out; what is left out is counted with its reason.

`inputs` finds the files, `streams` unpacks and decodes them, `documents` cuts them into blocks of bounded
size, and `records` reads a block into texts and rejects. `rejects` counts, lists and limits what is lost.
`texts` does all of this in one process, for commands that need no workers.
"""
