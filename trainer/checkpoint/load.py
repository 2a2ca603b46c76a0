"""Load a checkpoint of any topology into an engine, and verify the weights in memory."""

from __future__ import annotations

from tokenization.errors import InfrastructureError
from trainer.checkpoint import rank_files
from trainer.checkpoint.manifest import Checkpoint, verify_checkpoint
from trainer.engine.engine import Engine
from trainer.machine import collectives


def find_damage(checkpoint: Checkpoint) -> list[str]:
    """List the damaged files, a line each, on every rank; every rank reads its part of the files."""
    rank, world_size = collectives.rank(), collectives.world_size()
    found = collectives.all_gather(verify_checkpoint(checkpoint, rank, world_size))
    return [line for lines in found for line in lines]


def load_checkpoint(engine: Engine, checkpoint: Checkpoint, keep_optimizer: bool) -> None:
    """Fill the engine, and check that its weights are those that were saved.

    The files themselves must have been verified, with `find_damage`.

    Raises:
        InfrastructureError: the weights in memory are not those that were saved.
    """
    reader = rank_files.Reader(checkpoint.files)
    for fragment in engine.fragments(change=True):
        reader.fill(fragment, fragment.tensors if keep_optimizer else ("weight",))
    manifest = checkpoint.manifest
    engine.restore(manifest.adam_step if keep_optimizer else 0, manifest.loss_scale)
    parts = collectives.all_gather(rank_files.weight_checksums(f for f in engine.fragments() if f.owned))
    for name, found in rank_files.add_checksums(parts).items():
        if found != manifest.weights[name]:
            raise InfrastructureError(
                f"{checkpoint.path}: {name} was loaded with checksum {found}, but saved with "
                f"{manifest.weights[name]}; please report this bug"
            )
