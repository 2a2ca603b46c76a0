"""The command line: one file per noun, each command's parser beside its action.

`main` builds the parser from `vocab`, `data`, `model`, `runs` and `study`, runs one command, and turns an
error into a line on standard error and an exit code. `arguments` has the types that the parsers share,
`answer` prints what a command found.
"""
