"""The command line: each command's parser beside its action."""
