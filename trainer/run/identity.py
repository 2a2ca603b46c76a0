"""What a run is, as one flat description: the same on every rank, and held against the run's first start."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

import tokenization
import trainer
from tokenization import disk
from trainer.plan.make import Plan
from trainer.storage.run_directory import RunDirectory

PACKAGES = ("rewarm", "torch", "deepspeed", "transformers", "sentencepiece", "numpy")

PATHS = frozenset({"run_dir", "deepspeed", "model.base", "model.tokenizer"})
"""Fields of the recipe that say where something lies; what lies there is compared, and may lie elsewhere."""

FROM_DISK = frozenset({"checkpoint", "decision", "left_out"})
"""Fields in which ranks differ for a moment when a shared disk shows a change late."""

Identity = Mapping[str, str]
"""Field to value, as JSON text."""


def identity_of(plan: Plan) -> dict[str, str]:
    """Describe all that decides what `plan` trains: recipe, model, tokenizer, text, packages and code."""
    recipe = plan.recipe.model_dump(mode="json", exclude={"validation": {"upstream", "downstream", "audit"}})
    texts = {f"sources.{name}": store.fingerprint for name, store in plan.stores.items()}
    texts |= {f"validation.{name}": store.fingerprint for name, store in plan.validation.items()}
    fields = {
        **{f"recipe.{name}": value for name, value in _flat(recipe) if not _is_path(name)},
        **{f"model.{name}": value for name, value in _flat(plan.model_config)},
        **{f"deepspeed.{name}": value for name, value in _flat(plan.preset)},
        **{f"{name}.fingerprint": value for name, value in texts.items()},
        **{f"versions.{name}": value for name, value in package_versions().items()},
        "versions.code": code_version(),
        "micro_batch_size": plan.layout.micro_batch_size,
        "checkpoint": plan.checkpoint.path.name if plan.checkpoint else None,
        "decision": f"{plan.decision.kind} at phase {plan.decision.state.phase}",
        "left_out": [list(vars(one).values()) for one in plan.decision.state.left_out],
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}


def digest(identity: Identity) -> str:
    """Return one checksum of a whole identity."""
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(identity.items())).encode())


def odd_ranks(identities: Sequence[Identity], hosts: Sequence[str]) -> dict[str, str]:
    """Describe each field in which ranks differ: which ranks have another value than most, and what it is."""
    names = sorted({name for identity in identities for name in identity})
    found = {}
    for name in names:
        values = [identity.get(name, "nothing") for identity in identities]
        most = _most_common(values)
        odd: dict[str, list[int]] = {}
        for rank, value in enumerate(values):
            if value != most:
                odd.setdefault(value, []).append(rank)
        if odd:
            told = (f"{value} on {name_ranks(ranks, hosts)}" for value, ranks in odd.items())
            found[name] = f"{name} is {', '.join(told)} and {most} on {_others(values.count(most))}"
    return found


def changes_since_start(directory: RunDirectory, identity: Identity) -> Iterator[str]:
    """Yield what differs from the run's first start in packages and code; nothing if that is not known."""
    try:
        first = json.loads(directory.identity.read_text(encoding="utf-8"))
        pairs = [(name, first[name], identity[name]) for name in first if name in identity]
    except (OSError, ValueError, TypeError):
        return
    for name, before, now in pairs:
        if before != now and name.startswith("versions."):
            yield f"{name} has changed since the run began ({before} → {now}); losses may differ a little"


def write_first(directory: RunDirectory, identity: Identity) -> None:
    """Write what the run is, at its first start; a record that is there already stays."""
    if not directory.identity.exists():
        text = json.dumps(dict(identity), indent=1, sort_keys=True, ensure_ascii=False)
        disk.write_atomically(directory.identity, text + "\n")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute a run."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_version() -> str:
    """Return a checksum of this program's own source files, wherever they are installed."""
    found = xxhash.xxh3_64()
    for package in (tokenization, trainer):
        root = Path(str(package.__path__[0]))
        for path in sorted(root.rglob("*.py")):
            found.update(str(path.relative_to(root)).encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _flat(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree of mappings and lists, with dotted names."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(tree, Mapping) and tree:
        items = iter(tree.items())
    elif isinstance(tree, (list, tuple)) and tree:
        items = iter(enumerate(tree))
    if items is None:
        yield above, tree
        return
    for name, inner in items:
        yield from _flat(inner, f"{above}.{name}" if above else str(name))


def _is_path(name: str) -> bool:
    return name in PATHS or (name.startswith(("sources.", "validation.sets.")) and name.endswith(".path"))


def _most_common(values: Sequence[str]) -> str:
    """Return the value that most have; of two that as many have, that of the lower rank."""
    return Counter(values).most_common(1)[0][0]


def name_ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Name ranks and the hosts that they are on, `hosts` being those of all ranks."""
    where = ", ".join(sorted({hosts[rank] for rank in ranks}))
    listed = ", ".join(str(rank) for rank in ranks[:8]) + (", …" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {listed} (host {where})"


def _others(count: int) -> str:
    return "the other rank" if count == 1 else f"the other {count} ranks"
