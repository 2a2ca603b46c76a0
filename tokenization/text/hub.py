"""Splits of the hub's datasets as streams of rows: `hf://NAME[@REVISION][/CONFIG][:SPLIT]`, by `datasets`.

A split is cut where its dataset is: into the files that it was uploaded as. Its revision is pinned when it is
named, so that a restart reads the same rows. `datasets` reads data only: it has no way to run a script.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenization.errors import InfrastructureError, RewarmError, UserError

_SCHEME = "hf://"

_PART = r"[A-Za-z0-9_.\-]+"

_NAMED = re.compile(
    rf"{_SCHEME}(?:datasets/)?(?P<name>{_PART}(?:/{_PART})?)(?:@(?P<revision>{_PART}))?"
    rf"(?:/(?P<config>{_PART}))?(?::(?P<split>\w[\w.\-]*))?"
)

_COMMIT = re.compile("[0-9a-f]{40}")

_BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP codes of a hub that may answer later."""

_NETWORK = {"aiohttp", "httpcore", "httpx", "httpx2", "requests", "urllib3"}
"""Packages whose errors are those of a network."""


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset on the hub."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> HubSplit:
        """Read a split from `text`.

        Raises:
            UserError: it is not written like one.
        """
        match = _NAMED.fullmatch(text)
        if match is None:
            what, fix = "is not a dataset of the hub", "write it like hf://org/name/config:train"
            raise UserError(what, file=text, fix=fix)
        return cls(match["name"], match["revision"], match["config"], match["split"] or "train")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        config = f"/{self.config}" if self.config else ""
        return f"{_SCHEME}{self.name}{revision}{config}:{self.split}"


def is_hub_split(text: object) -> bool:
    """Tell whether an input is a dataset of the hub, and not a path."""
    return isinstance(text, str) and text.startswith(_SCHEME)


def pin(text: str) -> HubSplit:
    """Return the split of that name at the commit that its revision is now; offline, at the cached one.

    Raises:
        UserError: it is not there, or not cached where the hub may not be asked (HF_HUB_OFFLINE).
        InfrastructureError: the hub cannot be reached now.
    """
    found = HubSplit.parse(text)
    if found.revision and _COMMIT.fullmatch(found.revision):
        return found
    if _is_offline():
        return replace(found, revision=_cached(found).name)
    from huggingface_hub import HfApi

    with _one_line(found):
        return replace(found, revision=HfApi().dataset_info(found.name, revision=found.revision).sha)


def count_files(split: HubSplit, text_field: str) -> int:
    """Return how many files a split is streamed from, each by `read_rows`.

    Raises:
        UserError: it cannot be read, or lacks the column `text_field`.
        InfrastructureError: the hub cannot be reached now.
    """
    with _one_line(split):
        stream = _open(split)
        names = stream.column_names or next((list(row) for row in stream.take(1)), [text_field])
        files = int(stream.num_shards)
    if text_field not in names:
        what = f"is not a column; there are {', '.join(names)}"
        raise UserError(what, file=split, field="--text-field", value=text_field)
    return files


def read_rows(split: HubSplit, index: int, text_field: str) -> Iterator[Any]:
    """Yield what `text_field` holds in the rows of one file of a split, in order; None where it is missing.

    Raises:
        UserError: it cannot be read.
        InfrastructureError: the hub cannot be reached now.
    """
    with _one_line(split):
        stream = _open(split)
        if stream.column_names:
            stream = stream.select_columns([text_field])
        for row in stream.shard(num_shards=stream.num_shards, index=index):
            yield row.get(text_field)


@lru_cache(8)
def _open(split: HubSplit) -> Any:
    """Open a pinned split as a stream; offline from the hub's cache on this machine."""
    import datasets

    if _is_offline():
        path, revision = str(_cached(split).absolute()), None
        root = f"{path}/"
    else:
        path, revision = split.name, split.revision
        root = f"{_SCHEME}datasets/{path}@"
        if Path(path).exists():
            what, fix = (
                f"would be read from the folder {path} here",
                "work in another folder, or name its path",
            )
            raise UserError(what, file=split, fix=fix)
    # Where the hub fails, `datasets` would read any revision that its own cache has: it gets an empty one.
    with tempfile.TemporaryDirectory() as cache:
        builder = datasets.load_dataset_builder(path, split.config, revision=revision, cache_dir=cache)
        for file in (builder.config.data_files or {}).get(split.split, ()):
            _refuse_elsewhere(split, str(file), root)
        return builder.as_streaming_dataset(split=split.split)


def _refuse_elsewhere(split: HubSplit, file: str, root: str) -> None:
    """Refuse a file that a dataset's README names, and that is not one of the dataset's own.

    Raises:
        UserError: it lies on this machine or elsewhere on a network.
    """
    own = file.removeprefix(root)
    if own == file or ".." in own.split("/") or "::" in own:
        fix = "look at what its README names, and prepare the files themselves"
        raise UserError(f"names {file}, which is not a file of the dataset", file=split, fix=fix)


def _is_offline() -> bool:
    """Tell whether the environment forbids to ask the hub (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE)."""
    import datasets
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE)


def _cached(split: HubSplit) -> Path:
    """Return the folder of a dataset in the hub's cache.

    Raises:
        UserError: it is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _one_line(split):
        try:
            options: dict[str, Any] = {"repo_type": "dataset", "revision": split.revision}
            return Path(snapshot_download(split.name, local_files_only=True, **options))
        except LocalEntryNotFoundError:
            what = "is not cached, and HF_HUB_OFFLINE forbids to ask the hub"
            revision = f" --revision {split.revision}" if split.revision else ""
            command = f"hf download --repo-type dataset {split.name}{revision}"
            raise UserError(what, file=split, fix=f"fetch it where there is a network: {command}") from None


@contextlib.contextmanager
def _one_line(split: HubSplit) -> Iterator[None]:
    """Turn whatever the hub or `datasets` raises into one line.

    Raises:
        UserError: the dataset is not there, is not for this user, or cannot be read.
        InfrastructureError: the network or the hub failed.
    """
    try:
        yield
    except RewarmError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if _passes(error):
            raise InfrastructureError(
                f"{split}: the hub does not answer ({reason}); start again when it does, or set "
                "HF_HUB_OFFLINE=1 where `hf download --repo-type dataset` has fetched the whole dataset"
            ) from error
        raise UserError(f"cannot be read ({reason})", file=split) from error


def _passes(error: BaseException | None) -> bool:
    """Tell whether an error, or what caused it, is one that goes away by itself."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status in _BUSY
        package = type(error).__module__.split(".")[0]
        if isinstance(error, (ConnectionError, TimeoutError)) or package in _NETWORK:
            return True
        error = error.__cause__
    return False
