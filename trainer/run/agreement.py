"""What the ranks of a run must agree on before a step is trained: the plan, its inputs and the disk."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tokenization.errors import ExitCode, InfrastructureError, RewarmError, UserError
from trainer.machine import collectives
from trainer.machine.ranks import World
from trainer.plan.make import Plan, make_plan
from trainer.recipe.schema import Recipe
from trainer.run.identity import FROM_DISK, digest, identity_of, odd_ranks
from trainer.storage.run_directory import RunDirectory

_PATIENCE_S = 20.0
"""How long a rank waits for what rank 0 has written to the shared disk."""

_MOST_FIELDS = 4
"""Fields that an error names, of all in which ranks differ."""


def plan_together(recipe: Recipe, world: World, skip: Mapping[Path, str] = MappingProxyType({})) -> Plan:
    """Make the plan on every rank; where one fails, all raise its error instead of waiting for it.

    Raises:
        UserError, InfrastructureError: as `make_plan` on the first rank that failed.
    """
    plan, failure = None, None
    try:
        plan = make_plan(recipe, world.world_size, skip)
    except RewarmError as error:
        failure = (str(error), int(error.exit_code))
    except OSError as error:
        failure = (f"{error.filename}: {error.strerror or error}", int(ExitCode.REQUEUE))
    for rank, (failed, host) in enumerate(collectives.all_gather((failure, socket.gethostname()))):
        if failed is not None:
            told, code = failed
            where = f"rank {rank} (host {host}): " if world.world_size > 1 else ""
            raise (UserError if code == ExitCode.USER else InfrastructureError)(f"{where}{told}")
    assert plan is not None
    check_ranks_agree(plan)
    return plan


def check_ranks_agree(plan: Plan) -> None:
    """Ranks that see different things would train different runs, or wait for each other for ever.

    Raises:
        UserError: they differ in something that a person must fix; it names the odd ranks.
        InfrastructureError: they see different checkpoints.
    """
    mine = identity_of(plan)
    if len(set(collectives.all_gather(digest(mine)))) == 1:
        return
    found = odd_ranks(*zip_columns(collectives.all_gather((mine, socket.gethostname()))))
    if set(found) <= FROM_DISK:
        told = "; ".join(found.values())
        raise InfrastructureError(f"ranks see different checkpoints: {told}; the shared disk may be late")
    lines = [line for name, line in found.items() if name not in FROM_DISK]
    more = f"; and {len(lines) - _MOST_FIELDS} more" if len(lines) > _MOST_FIELDS else ""
    fix = "start every rank with one recipe, one environment and the same files"
    if list(found) == ["micro_batch_size"]:
        fix = "set micro_batch_size: auto fits it to each node's own memory"
    raise UserError(f"ranks differ: {'; '.join(lines[:_MOST_FIELDS])}{more}", fix=fix)


def zip_columns(rows: list[tuple[dict[str, str], str]]) -> tuple[list[dict[str, str]], list[str]]:
    """Turn a list of (identity, host) into the list of identities and the list of hosts."""
    return [identity for identity, _ in rows], [host for _, host in rows]


def check_shared(directory: Path, world: World) -> None:
    """Check that every rank sees the run directory that rank 0 sees, before anything is trained for it.

    Rank 0 writes a file of a new name, which no rank can have in a cache, and the others look for it.

    Raises:
        UserError: on every rank, if one has another directory there: it names that rank and its host.
        InfrastructureError: rank 0 cannot write there.
    """
    if world.world_size == 1:
        return
    token, failure = None, None
    if world.rank == 0:
        token = RunDirectory(directory).path / f"{RunDirectory.SHARED}{uuid.uuid4().hex}"
        try:
            token.touch()
        except OSError as error:
            failure = f"{token}: cannot be written ({error.strerror})"
    name, failure = collectives.broadcast((token and token.name, failure))
    if failure is not None:
        raise InfrastructureError(failure)
    seen = _appears(directory / name)
    answers = collectives.all_gather((seen, socket.gethostname()))
    if token is not None:
        with contextlib.suppress(OSError):
            token.unlink()
    blind = [(rank, host) for rank, (sees, host) in enumerate(answers) if not sees]
    if blind:
        rank, host = blind[0]
        what = f"is another directory on rank {rank} (host {host}) than on rank 0 (host {answers[0][1]})"
        fix = "put it on a disk that all nodes share, with an absolute path"
        raise UserError(what, field="run_dir", value=str(directory), fix=fix)


def _appears(path: Path) -> bool:
    """Wait for a file that another node has made."""
    deadline = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # NFS looks again
    return True
