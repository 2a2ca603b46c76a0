"""Estimate the memory that a rank needs, from the config and before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.model.size import parameters
from trainer.storage.safetensors import DTYPES

LOGITS_BYTES = 3 * 2**27
"""A chunk of fp32 logits, its gradient and a temporary (see `loss.CHUNK_LOGITS`)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's device and host; activations are counted per sample."""

    weights: int
    gradients: int
    optimizer: int
    """fp32 master weights and both moments."""
    host: int
    """Bytes that offload moves to the host."""
    per_sample: int
    """Activations of one sample of `seq_len` tokens."""
    fixed: int
    """The largest working sets that do not depend on the micro batch."""

    @property
    def states(self) -> int:
        """Bytes on the device without activations."""
        return self.weights + self.gradients + self.optimizer + self.fixed

    def largest_micro_batch(self, available: int) -> int:
        """Return how many samples fit beside the states into `available` bytes; 0 if none does."""
        return max(0, (available - self.states) // self.per_sample)


def estimate(
    config: Mapping[str, Any],
    *,
    stage: int,
    offload_optimizer: bool,
    offload_parameters: bool,
    world_size: int,
    seq_len: int,
    dtype: str,
    recompute: bool,
) -> Memory:
    """Estimate a rank's memory: model states after Rajbhandari et al. 2020 (arXiv 1910.02054), activations
    after Korthikanti et al. 2022 (arXiv 2205.05198), without what memory-efficient attention does not store.
    """
    count, width = parameters(config), DTYPES[dtype].itemsize
    weights = count * width // (world_size if stage >= 3 else 1)
    # Whatever the dtype, the gradients of micro batches are added in fp32.
    gradients = count * 4 // (world_size if stage >= 2 else 1)
    # Without sharding, fp32 weights are their own master copy.
    optimizer = count * (12 if stage else 8) // (world_size if stage >= 1 else 1)
    host = 0
    if offload_optimizer:
        host, optimizer = optimizer + gradients, 0
        if stage >= 3:  # below, the sums stay on the device until the step
            gradients //= 4
    if offload_parameters:
        host, weights = host + weights, weights // int(config["num_hidden_layers"]) * 2
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    layer = seq_len * (10 * hidden + 4 * int(config["intermediate_size"])) * width
    kept = seq_len * hidden * width
    per_sample = layers * kept + layer if recompute else layers * layer
    largest = max(hidden * int(config["vocab_size"]), hidden * int(config["intermediate_size"]))
    fixed = LOGITS_BYTES + 4 * largest
    return Memory(weights, gradients, optimizer, host, per_sample, fixed)
