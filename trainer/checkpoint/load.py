"""Loading: an engine is filled from a checkpoint of any topology, and what arrived is proved."""

from __future__ import annotations

import torch

from tokenization.errors import InfrastructureError
from trainer.checkpoint import rank_files
from trainer.checkpoint.manifest import Checkpoint, verify_checkpoint
from trainer.engine.engine import Engine
from trainer.machine import collectives


def find_damage(checkpoint: Checkpoint) -> list[str]:
    """A line for each damaged file, on every rank; every rank reads its share of the files."""
    rank, world_size = collectives.rank(), collectives.world_size()
    shares = collectives.all_gather(verify_checkpoint(checkpoint, rank, world_size))
    return [line for share in shares for line in share]


def load_checkpoint(engine: Engine, checkpoint: Checkpoint, keep_optimizer: bool) -> None:
    """Fills the engine and proves that the weights arrived; the files are verified before (`damaged`).

    Raises:
        InfrastructureError: what is in memory is not what was saved.
    """
    reader = rank_files.Reader(checkpoint.files)
    for fragment in engine.fragments(change=True):
        reader.fill(fragment, fragment.tensors if keep_optimizer else ("weight",))
    manifest = checkpoint.manifest
    engine.restore(manifest.adam_step if keep_optimizer else 0, manifest.loss_scale)
    # A frozen weight may be kept in fewer bits than it was saved with; all others must be equal.
    exact = (f for f in engine.fragments() if f.owned and f.tensors["weight"].dtype == torch.float32)
    shares = collectives.all_gather(rank_files.weight_checksums(exact))
    for name, found in rank_files.add_checksums(shares).items():
        if found != manifest.weights[name]:
            raise InfrastructureError(
                f"{checkpoint.path}: {name} was loaded with checksum {found}, saved with "
                f"{manifest.weights[name]}; this is a defect, do not go on"
            )
