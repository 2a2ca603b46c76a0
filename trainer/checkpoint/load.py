"""Load a checkpoint of any topology into an engine, and verify the weights in memory."""

from __future__ import annotations

from collections.abc import Mapping

from tokenization.errors import InfrastructureError, UserError
from trainer.checkpoint import rank_files
from trainer.checkpoint.manifest import Checkpoint, verify_checkpoint
from trainer.engine.engine import Engine
from trainer.machine import collectives
from trainer.storage.fragment import AVERAGE


def find_damage(checkpoint: Checkpoint) -> list[str]:
    """List the damaged files, a line each, on every rank; every rank reads its part of the files."""
    rank, world_size = collectives.rank(), collectives.world_size()
    found = collectives.all_gather(verify_checkpoint(checkpoint, rank, world_size))
    return [line for lines in found for line in lines]


def load_checkpoint(engine: Engine, checkpoint: Checkpoint, keep_optimizer: bool) -> None:
    """Fill the engine, and check that its weights are those that were saved.

    The files themselves must have been verified, with `find_damage`.

    Raises:
        UserError: the checkpoint does not hold the weights that the model has, by name and shape.
        InfrastructureError: the weights in memory are not those that were saved.
    """
    reader = rank_files.Reader(checkpoint.files)
    saved = {name: pieces[0].shape for name, pieces in reader.pieces.items()}
    if told := different_weights(saved, engine.shapes):
        fix = "restore the config.json that it was saved with, or choose another run_dir"
        raise UserError(told, file=checkpoint.path, fix=fix)
    for fragment in engine.fragments(change=True):
        reader.fill(fragment, fragment.tensors if keep_optimizer else ("weight",))
        if AVERAGE in fragment.tensors and not keep_optimizer:  # a phase's average begins with its weights
            fragment.tensors[AVERAGE].copy_(fragment.tensors["weight"])
    manifest = checkpoint.manifest
    engine.restore(manifest.adam_step if keep_optimizer else 0, manifest.loss_scale)
    parts = collectives.all_gather(rank_files.weight_checksums(f for f in engine.fragments() if f.owned))
    for name, found in rank_files.add_checksums(parts).items():
        if found != manifest.weights[name]:
            raise InfrastructureError(
                f"{checkpoint.path}: {name} was loaded with checksum {found}, but saved with "
                f"{manifest.weights[name]}; please report this bug"
            )


def different_weights(
    saved: Mapping[str, tuple[int, ...]], model: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Compare names and shapes of saved weights with a model's, as sets; tell the first differences."""
    unknown, missing = sorted(set(saved) - set(model)), sorted(set(model) - set(saved))
    told = []
    if unknown:
        told.append(f"holds {len(unknown)} weights that the model does not have, among them {unknown[0]}")
    if missing:
        told.append(f"lacks {len(missing)} weights of the model, among them {missing[0]}")
    for name in sorted(set(saved) & set(model)):
        if tuple(saved[name]) != tuple(model[name]):
            told.append(
                f"holds {name} with shape {list(saved[name])}, and the model's is {list(model[name])}"
            )
            break
    return "; ".join(told) or None


def check_finite(engine: Engine, origin: str | None) -> None:
    """Check, on every rank, that the weights that a phase starts from are numbers.

    Raises:
        UserError: one holds NaN or infinity; training it would make all of them so.
    """
    mine = [own.name for own in engine.fragments() if not rank_files.is_finite(own.tensors["weight"])]
    bad = sorted({name for names in collectives.all_gather(mine) for name in names})
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        what = f"{bad[0]}{more} holds values that are not finite (NaN or infinity)"
        fix = "copy the model again, or take one from before it diverged"
        raise UserError(what, file=origin or "model.init", fix=fix)
