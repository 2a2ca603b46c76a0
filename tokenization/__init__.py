"""Text becomes token shards. This package never imports `trainer`."""
