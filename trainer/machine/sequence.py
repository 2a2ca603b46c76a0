"""The ranks that share samples: each holds a part of every sequence, and they exchange attention heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single_autograd

from trainer.machine import collectives


@dataclass(frozen=True)
class SequenceGroup:
    """This rank among the ranks that hold the parts of the same samples."""

    group: dist.ProcessGroup
    part: int
    """Which part of every sequence this rank holds, from 0."""
    parts: int

    def exchange(self, blocks: torch.Tensor) -> torch.Tensor:
        """Send block j to rank j of the group and return what each sent to this rank: `[parts, …]`, both.

        Its derivative is the exchange in the other direction. It is torch's operator, which is the same for
        NCCL and gloo and which `torch.compile` knows.
        """
        return all_to_all_single_autograd(blocks.contiguous(), None, None, self.group)


def sequence_group(parts: int) -> SequenceGroup:
    """Make the groups of `parts` ranks that follow each other, and return this rank's.

    All ranks call this at the same point. Such ranks are on one node where `parts` divides the ranks of a
    node: the exchange is the most frequent communication of a run.
    """
    first, part = divmod(collectives.rank(), parts)
    return SequenceGroup(_groups(dist.group.WORLD, parts)[first], part, parts)


@cache
def _groups(world: dist.ProcessGroup, parts: int) -> list[dist.ProcessGroup]:
    """The groups of a world, made once: every phase of a run uses the same ones."""
    blocks = [list(range(at, at + parts)) for at in range(0, dist.get_world_size(world), parts)]
    return [dist.new_group(ranks, timeout=collectives.TIMEOUT) for ranks in blocks]
