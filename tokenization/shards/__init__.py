"""Token ids come in, document by document, and samples of any length go out.

`format` describes the three files of a shard (Megatron's index and data, and a side file with counts and
checksums), `writer` makes them appear whole or not at all, and `store` reads one shard, or all parts of a
source, as one stream of tokens. `show` decodes a sample for a person.
"""
