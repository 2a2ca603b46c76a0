"""Token shards in Megatron's indexed format: written, joined and read."""
