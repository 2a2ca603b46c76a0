"""What a run passes over: the record of it in the run directory, and the samples by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenization import disk
from tokenization.shards.store import TokenStore
from trainer.mixer.mixture import Mixture
from trainer.plan.past import read_left_out
from trainer.run.health import Spike
from trainer.storage.run_directory import RunDirectory

_SHOWN = 8
"""Samples that the log names; the file names all."""


def record_left_out(
    directory: RunDirectory,
    spike: Spike,
    mixture: Mixture,
    stores: Mapping[str, TokenStore],
    tokenizer: str,
) -> list[str]:
    """Record that a spike's samples are left out from now on; return lines that name them.

    The record is written before the run goes back, so that a start after a kill passes over them, too.
    """
    samples = named_samples(spike, mixture, stores)
    entry = {**vars(spike.samples), "step": spike.step, "why": spike.what, "samples": samples}
    entries = [*read_left_out(directory), entry]
    disk.write_atomically(directory.left_out, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    lines = [
        f"left out: source {one['source']}, sample {one['sample']}, documents {one['documents'][0]} to "
        f"{one['documents'][1]}: rewarm data show {one['prefix']} --sample {one['sample']} "
        f"--seq-len {_length(spike, mixture)} --tokenizer {tokenizer}"
        for one in samples[:_SHOWN]
    ]
    if len(samples) > _SHOWN:
        lines.append(f"left out: and {len(samples) - _SHOWN} more samples, see {directory.left_out}")
    return lines


def named_samples(spike: Spike, mixture: Mixture, stores: Mapping[str, TokenStore]) -> list[dict[str, Any]]:
    """Name each sample of a spike: its source, its number there, and the first and last document it is of."""
    window = spike.samples
    drawn = mixture.samples(window.phase, window.start, window.stop)
    found, length = [], _length(spike, mixture)
    for source, index in zip(drawn.source.tolist(), drawn.index.tolist(), strict=True):
        name = mixture.names[source]
        store = stores[name]
        documents = store.documents_of(index * length, length + 1)
        found.append(
            {"source": name, "prefix": str(store.prefix), "sample": index, "documents": list(documents)}
        )
    return found


def _length(spike: Spike, mixture: Mixture) -> int:
    """Tokens of a sample of the spike's phase."""
    return mixture.orders[spike.samples.phase].seq_len
