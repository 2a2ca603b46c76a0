"""Text becomes token shards; this package never imports `trainer`.

`text` finds the documents in a user's files, `tokenizer` opens a vocabulary and chooses the fastest encoder
with exact ids, and `shards` stores token ids. On top of them, `vocabulary` trains and extends vocabularies
and reports on them, and `prepare` turns a corpus into shards. `errors`, `disk` and `tables` serve all rooms,
and those of `trainer` too.
"""
