"""Estimate what a run costs: floating-point operations, hours, bytes on the network, disk space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.machine.devices import peak_flops
from trainer.model.size import flops_per_token, matmul_parameters, parameters
from trainer.plan.memory import WIDTHS, MemorySettings

ASSUMED_MFU = 0.35
"""Model FLOP/s utilization by 6N + 12·L·d·s where none is given: about plain DeepSpeed's with 7B."""

MFU_SOURCE = (
    "assumed: plain DeepSpeed reaches about 35% with 7B on many GPUs; this trainer 50% with 8B on one H200, "
    "compiled (docs/performance.md); --mfu takes what you measured"
)

EXPORT_SHARD = 5_000_000_000
"""Most bytes of a file that `rewarm export` writes by default."""


@dataclass(frozen=True)
class Compute:
    """What a run takes of a kind of GPU."""

    flops_6n: float
    """6 FLOPs per token for each parameter that it is multiplied with (Kaplan et al. 2020)."""
    flops: float
    """The same with attention: 6N + 12·L·d·s (Chowdhery et al. 2022, appendix B)."""
    mfu: float
    mfu_source: str
    peak: float | None
    """FLOP/s of a GPU in bf16; None if it is not known."""
    gpu_hours: float | None
    hours: float | None
    tokens_per_second: float | None
    """Of all GPUs together."""


def compute_cost(
    config: Mapping[str, Any],
    parts: Sequence[tuple[int, int]],
    gpus: int,
    *,
    gpu: str | None,
    dtype: str,
    mfu: float | None,
) -> Compute:
    """Estimate FLOPs and time of training.

    `parts` are tokens and the samples' length in each phase, since attention takes more in longer samples.
    `gpu` is a device's name, if it is known."""
    tokens = sum(count for count, _ in parts)
    flops = sum(count * flops_per_token(config, seq_len) for count, seq_len in parts)
    peak = peak_flops(gpu, dtype) if gpu else None
    used = ASSUMED_MFU if mfu is None else mfu
    hours = None if peak is None else flops / (gpus * peak * used) / 3600
    return Compute(
        flops_6n=6 * matmul_parameters(config) * tokens,
        flops=flops,
        mfu=used,
        mfu_source=MFU_SOURCE if mfu is None else "given",
        peak=peak,
        gpu_hours=None if hours is None else hours * gpus,
        hours=hours,
        tokens_per_second=tokens / hours / 3600 if hours else None,
    )


@dataclass(frozen=True)
class Network:
    """Bytes that a rank sends in an optimizer step, as ring algorithms do."""

    gradients: int
    weights: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.gradients + self.weights


def network_bytes(count: int, settings: MemorySettings, accumulation: int) -> Network:
    """Count the bytes that a rank sends in a step, for `count` parameters.

    A ring's reduce-scatter and all-gather each send (W − 1)/W of the whole (Rajbhandari et al. 2020, section
    7). Gradients travel in fp32, once per step at ZeRO-0 and 1 and once per micro batch above. ZeRO-1 and 2
    gather the weights once per step, ZeRO-3 twice per micro batch. ZeRO++ (Wang et al. 2023, arXiv
    2306.10209) halves the bytes of the forward pass's weights, keeps those of the backward pass within a
    node, and quarters the gradients'."""
    ranks, p = settings.world_size, settings.width
    share = (ranks - 1) / ranks
    gradients, weights = 4.0 * count, float(p * count)
    if settings.stage == 0:
        return Network(int(2 * gradients * share), 0)
    if settings.stage == 1:
        return Network(int(gradients * share), int(weights * share))
    if settings.stage == 2:
        return Network(int(gradients * accumulation * share), int(weights * share))
    gathered = weights / 2 if settings.node_copy else 2 * weights
    reduced = weights / 4 if settings.node_copy else gradients
    return Network(int(reduced * accumulation * share), int(gathered * accumulation * share))


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk that holds the run directory."""

    checkpoint: int
    files: int
    """Files of a checkpoint with tensors in them: one per rank."""
    kept: int
    """All checkpoints at the run's end and the one that is being written: `keep_last`, `keep_every`."""
    checkpoints_kept: int
    export: int
    """A model directory in bf16."""
    export_files: int


def checkpoint_bytes(config: Mapping[str, Any], state_width: int, average: bool = False) -> int:
    """Return the size of a checkpoint: fp32 weights and both moments of AdamW, of so many bytes each.

    With `average` it holds averaged weights, too.
    """
    return parameters(config) * ((8 if average else 4) + 2 * state_width)


def disk_space(
    config: Mapping[str, Any],
    tokens: int,
    ranks: int,
    keep_last: int,
    keep_every: int | None,
    state_width: int = 4,
    average: bool = False,
) -> Disk:
    """Count what checkpoints hold."""
    count, checkpoint = parameters(config), checkpoint_bytes(config, state_width, average)
    kept = keep_last + 1 + (tokens // keep_every if keep_every else 0)
    export = WIDTHS["bf16"] * count
    return Disk(checkpoint, ranks, kept * checkpoint, kept, export, -(-export // EXPORT_SHARD))
