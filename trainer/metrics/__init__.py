"""A run's numbers: named in one place, measured, written, shown, and read back.

`names` has the name of every metric. `throughput`, `stability` and `slow_ranks` measure; `log` passes each
step's metrics on to `jsonl` (the record, which is also read back there), `services` (TensorBoard, Weights &
Biases) and `progress` (a bar or lines for the person who watches).
"""
