"""The mixer compared with megatron-core's blended dataset and torch's WeightedRandomSampler.

    python benchmarks/mixer.py            # the whole table, some minutes
    python benchmarks/mixer.py --quick    # small sizes, some seconds

Every measurement runs in a process of its own, so that peak memory is that measurement's. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.shards.store import open_tokens
from tokenization.shards.writer import ShardWriter
from trainer.mixer.loader import Loader
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.recipe import load, schema

SEQ_LEN = 4096
VOCABULARY = 32_000
EOS = 2
TEN_TRILLION = 10**13
SHARES = [("zh", 0.749), ("en", 0.25), ("tiny", 0.001)]


def twenty_sources(tokens: int) -> tuple[schema.Recipe, dict[str, SourceSize]]:
    """Return a mixture of 20 sources of that many tokens in all, half of them replayed."""
    names = [f"source{k:02}" for k in range(20)]
    parts = [k % 7 + 1 for k in range(20)]
    lines = [
        *("name: bench", "model: {base: none, tokenizer: none}", "deepspeed: none", f"seq_len: {SEQ_LEN}"),
        *("global_batch_size: 1024", "validation: {every_tokens: 1}", "checkpoint: {every_tokens: 1}"),
        "sources:",
        *(
            f"  {name}: {{path: none, role: {'new' if k % 2 else 'replay'}, max_epochs: null}}"
            for k, name in enumerate(names)
        ),
        "phases:",
        f"  - {{name: all, tokens: {tokens}, mixture: {{replay_ratio: 25%}},"
        " schedule: {kind: constant, max_lr: 1e-4}}",
    ]
    samples = {name: tokens // SEQ_LEN * part // sum(parts) for name, part in zip(names, parts, strict=True)}
    sizes = {name: SourceSize(count, name, count * SEQ_LEN + 1) for name, count in samples.items()}
    return load.parse_recipe("\n".join(lines)), sizes


def ours_start(samples: int) -> dict[str, float]:
    """From a parsed recipe to the first sample."""
    recipe, sizes = twenty_sources(samples * SEQ_LEN)
    started, before = time.perf_counter(), peak_mb()
    mixture = Mixture.from_recipe(recipe, sizes)
    mixture.samples(0, 0, 1)
    return {"seconds": time.perf_counter() - started, "mb": peak_mb() - before}


def ours_seek(sample: int) -> dict[str, float]:
    """One sample far away, on average over neighbours that were never read before."""
    mixture = Mixture.from_recipe(*twenty_sources(TEN_TRILLION))
    mixture.samples(0, 0, 1)
    started = time.perf_counter()
    for i in range(100):
        mixture.samples(0, sample + i, sample + i + 1)
    return {"seconds": (time.perf_counter() - started) / 100}


def ours_lookups(batch: int) -> dict[str, float]:
    """Samples of global batches, order within the batch included."""
    mixture = Mixture.from_recipe(*twenty_sources(TEN_TRILLION))
    mixture.batch(0, 0, batch)
    batches = max(1, 400_000 // batch)
    started = time.process_time()
    for k in range(batches):
        mixture.batch(0, k * batch, batch)
    return {"per_s": batches * batch / (time.process_time() - started)}


def megatron_start(samples: int) -> dict[str, float]:
    """BlendedDataset's own constructor over datasets that have a length and nothing else."""
    blended = quietly("megatron.core.datasets.blended_dataset").BlendedDataset

    class Sized:
        index_split = type("Split", (), {"name": "train"})
        unique_identifiers = "none"

        def __len__(self) -> int:
            return 2**60

    config = type("Config", (), {"path_to_cache": None, "defer_npy_index_mmap": False})
    weights = [float(k % 7 + 1) for k in range(20)]
    started, before = time.perf_counter(), peak_mb()
    blended([Sized() for _ in weights], weights, samples, config)
    return {"seconds": time.perf_counter() - started, "mb": peak_mb() - before}


def torch_start(samples: int) -> dict[str, float]:
    """WeightedRandomSampler over all samples of the sources, up to its first index."""
    import torch
    from torch.utils.data import WeightedRandomSampler

    started, before = time.perf_counter(), peak_mb()
    weights: Any = torch.ones(samples, dtype=torch.float64)  # a tensor is taken as it is, a list copied
    next(iter(WeightedRandomSampler(weights, samples, replacement=True)))
    return {"seconds": time.perf_counter() - started, "mb": peak_mb() - before}


def shares_of(kind: str, batches: int, batch: int) -> dict[str, float]:
    """The worst error, in samples, of the 0.1 % source at any batch boundary, and repeats in one epoch."""
    samples = batches * batch
    sizes = [int(samples * share * 2) for _, share in SHARES]  # twice what is drawn: nobody need repeat
    if kind == "torch":
        import torch
        from torch.utils.data import WeightedRandomSampler

        weights = np.repeat([share / size for (_, share), size in zip(SHARES, sizes, strict=True)], sizes)
        sampler = WeightedRandomSampler(weights.tolist(), samples, generator=torch.Generator().manual_seed(0))
        index = np.array(list(sampler))
        source = np.searchsorted(np.cumsum(sizes), index, side="right")
    elif kind == "megatron":
        helpers = quietly("megatron.core.datasets.helpers")
        source, index = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
        helpers.build_blending_indices(source, index, [share for _, share in SHARES], 3, samples, False)
        index = index + (np.cumsum(sizes) - sizes)[source]
    else:
        drawn = shares_mixture(sizes, samples).samples(0, 0, samples)
        source, index = drawn.source, drawn.index + (np.cumsum(sizes) - sizes)[drawn.source]
    taken = np.cumsum(source == 2)[batch - 1 :: batch]
    error = np.abs(taken - 0.001 * batch * np.arange(1, batches + 1)).max()
    return {"error": float(error), "repeats": samples - len(np.unique(index))}


def shares_mixture(sizes: list[int], samples: int) -> Mixture:
    """Our mixture of the three sources that `shares_of` compares."""
    weights = ", ".join(f"{name}: {share}" for name, share in SHARES)
    sources = "\n".join(f"  {name}: {{path: none, role: new}}" for name, _ in SHARES)
    recipe = load.parse_recipe(
        "name: bench\nmodel: {base: none, tokenizer: none}\ndeepspeed: none\nseq_len: 1\n"
        "global_batch_size: 1\nvalidation: {every_tokens: 1}\ncheckpoint: {every_tokens: 1}\n"
        f"sources:\n{sources}\nphases:\n  - {{name: all, tokens: {samples}, mixture: {{{weights}}},"
        " schedule: {kind: constant, max_lr: 1e-4}}"
    )
    known = {name: SourceSize(size, name, size) for (name, _), size in zip(SHARES, sizes, strict=True)}
    return Mixture.from_recipe(recipe, known)


def ours_read(folder: str, mask: str, batches: int) -> dict[str, float]:
    """Tokens per second of one core, from shards in the page cache, through the loader's own reading."""
    stores = {name: open_tokens(f"{folder}/{name}") for name, _ in SHARES}
    mixture = shares_mixture([store.samples(SEQ_LEN) for store in stores.values()], 10**9)
    loader = Loader(
        mixture,
        stores,
        micro_batch_size=8,
        rank=0,
        world_size=1,
        document_mask=mask,  # type: ignore[arg-type]
        eos_id=EOS,
    )
    loader._read(0, 0, 256)  # in this thread: reading ahead would hide part of the work
    started = time.process_time()
    for k in range(batches):
        loader._read(0, k * 256, 256)
    loader.close()
    return {"per_s": batches * 256 * SEQ_LEN / (time.process_time() - started)}


def megatron_read(folder: str, batches: int) -> dict[str, float]:
    """Return the same shards through GPTDataset and BlendedDataset, stacked by torch's default collation."""
    quietly("megatron.core.datasets.helpers")
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split
    from torch.utils.data import default_collate

    tokenizer = type("Tokenizer", (), {"vocab_size": VOCABULARY, "eod": EOS, "unique_identifiers": "none"})
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=SEQ_LEN,
        blend=None,
        split="1,0,0",
        tokenizer=tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    samples = (batches + 1) * 256
    datasets = []
    for name, share in SHARES:
        indexed = IndexedDataset(f"{folder}/{name}", mmap=True)
        documents = np.arange(len(indexed.sequence_lengths), dtype=np.int32)
        wanted = int(samples * share * 1.005) + 2
        datasets.append(GPTDataset(indexed, f"{folder}/{name}", documents, wanted, Split.train, config))
    blended = BlendedDataset(datasets, [share for _, share in SHARES], samples, config)

    def read(k: int) -> None:
        for at in range(256 * k, 256 * (k + 1), 8):
            default_collate([blended[i] for i in range(at, at + 8)])

    read(0)
    started = time.process_time()
    for k in range(batches):
        read(k + 1)
    return {"per_s": batches * 256 * SEQ_LEN / (time.process_time() - started)}


def write_shards(folder: str, megabytes: int) -> None:
    """Random tokens in documents of about 800, split over the sources."""
    rng = np.random.default_rng(0)
    for name, share in SHARES:
        tokens = max(int(megabytes * 2**20 / 2 * share), 20 * SEQ_LEN)
        with ShardWriter(f"{folder}/{name}", vocab_size=VOCABULARY, tokenizer="none", eos_id=EOS) as writer:
            for _ in range(tokens // 800 // 100 + 1):
                ids = rng.integers(3, VOCABULARY, 80_000).astype(np.uint16)
                ids[799::800] = EOS
                writer.add_documents(ids, np.full(100, 800))


def quietly(module: str) -> Any:
    """Import a module that warns about what it did not find."""
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def peak_mb() -> float:
    """Peak resident memory of this process, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(measure: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Run a measurement in a process of its own, on one core."""
    call = [sys.executable, __file__, "--measure", measure.__name__, json.dumps(arguments)]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{measure.__name__}{arguments}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(quick: bool) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"commit {commit.stdout.strip()}, {date.today()}, {platform.machine()}, {os.cpu_count()} cores;")
    print(f"Python {platform.python_version()}", end="")
    for package in ("numpy", "megatron-core", "torch"):
        print(f", {package} {version(package)}", end="")
    print("\n\n**Start-up, 20 sources** (seconds; peak MB above what the imports take)\n")
    print("| samples | rewarm | megatron-core BlendedDataset | torch WeightedRandomSampler |")
    print("|---|---|---|---|")
    sizes = [10**4, 10**5, 10**6] if quick else [10**5, 10**6, 10**7, 10**8]
    for samples in [*sizes, TEN_TRILLION // SEQ_LEN]:
        cells = [apart(ours_start, samples)]
        cells += [apart(megatron_start, samples)] if samples <= 10**8 else [{}]
        cells += [apart(torch_start, samples)] if samples <= 2**24 else [{}]
        shown = [f"{cell['seconds']:.3f} s, {cell['mb']:.0f} MB" if cell else "–" for cell in cells]
        print(f"| {samples:,} | {' | '.join(shown)} |")
    print("\n(torch.multinomial takes at most 2^24 samples; megatron-core's index is 10 bytes a sample.)\n")
    seek = apart(ours_seek, 10**12)["seconds"]
    print(f"Seek to sample 10^12: {seek * 1e3:.3f} ms")
    for batch in (256, 1024, 16_384):
        print(f"Look-ups, global batches of {batch:,}: {apart(ours_lookups, batch)['per_s'] / 1e3:,.0f} k/s")
    batches = 200 if quick else 20_000
    print(f"\n**A source of 0.1 % over {batches:,} batches of 8**\n")
    print("| | worst error at a batch boundary, samples | samples repeated |\n|---|---|---|")
    for kind in ("rewarm", "megatron", "torch"):
        found = apart(shares_of, kind, batches, 8)
        print(f"| {kind} | {found['error']:.2f} | {found['repeats']:,} |")
    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder, 64 if quick else 1024)
        rounds = 4 if quick else 40
        print("\n**Reading, one core, page cache** (M tokens/s; the same shards)\n")
        print(f"| rewarm | {apart(ours_read, folder, 'none', rounds)['per_s'] / 1e6:.0f} |\n|---|---|")
        masked = apart(ours_read, folder, "causal_per_document", rounds)
        print(f"| rewarm, causal_per_document | {masked['per_s'] / 1e6:.0f} |")
        print(f"| megatron-core | {apart(megatron_read, folder, rounds)['per_s'] / 1e6:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "ARGUMENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, arguments = options.measure
        print(json.dumps(globals()[name](*json.loads(arguments))))
    else:
        report(options.quick)


if __name__ == "__main__":
    main()
