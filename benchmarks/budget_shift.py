"""The forgetting budget where the new text changes in the middle: Chinese first, then program code.

    python -m benchmarks.budget_shift                          # after launch/quickstart.sh
    python -m benchmarks.budget_shift --parallel 8 --seeds 3   # on a GPU that the arms share

The new source is one file in the order on disk: Chinese documents, and after them the modules of Python's own
library; each seed has them in another order. Neither the recipe nor the controller knows where the text
changes. The learning rate is constant, so that nothing else changes. Prints Markdown: what a budget and fixed
ratios replayed before and after the change, and what they forgot of the audit set at the last validation
before it and at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.budget import ROOT, held_out, markdown, spread, start, trained
from tokenization import disk
from tokenization.prepare.prepare import prepare
from trainer.metrics import names
from trainer.metrics.jsonl import history_of, read_attempts

LONGEST = 20_000
"""Characters of a document of code: a longer module is left out."""

HELD_OUT = 20
"""One module in so many is kept for the validation of code."""


@dataclass(frozen=True)
class Half:
    """What a run did before or after its text changed."""

    replayed: float
    forgotten: float
    """Audit forgetting at its last validation, bits per byte, of averaged weights."""
    worst: float
    """The most of it at any validation."""


@dataclass(frozen=True)
class Shifted:
    """A run, cut where its new text changed."""

    before: Half
    after: Half
    chinese: float
    code: float
    """Bits per byte at the end."""


def texts(quickstart: Path, out: Path, seeds: int, tokens: int) -> None:
    """Write the new text of each seed, its Chinese part alone, and the held-out code.

    The Chinese part is 40 % of a run's tokens, so that the change comes about the middle of a run that
    replays a fifth.
    """
    tokenizer = str(quickstart / "tokenizers" / "extended")
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    code = [module.read_text(encoding="utf-8", errors="replace") for module in modules if _is_own(module)]
    code = [text for text in code if 200 < len(text) < LONGEST]
    _shards(code[::HELD_OUT], out, "code-validation", tokenizer)
    lines = (quickstart / "text" / "chinese-train.jsonl").read_text(encoding="utf-8").splitlines()
    train = json.loads(
        (quickstart / "tokens" / "extended" / "chinese-train.json").read_text(encoding="utf-8")
    )
    per_character = train["tokens"] / sum(len(json.loads(line)["text"]) for line in lines)
    for seed in range(seeds):
        order = random.Random(seed)
        chinese = [json.loads(line)["text"] for line in lines]
        order.shuffle(chinese)
        kept, characters = [], 0
        for text in chinese:
            if characters * per_character >= 0.4 * tokens:
                break
            kept.append(text)
            characters += len(text)
        _shards(kept, out, f"chinese-{seed}", tokenizer)
        others = [text for number, text in enumerate(code) if number % HELD_OUT]
        order.shuffle(others)
        _shards([*kept, *others], out, f"new-{seed}", tokenizer)


def _is_own(module: Path) -> bool:
    return not {"site-packages", "dist-packages", "test", "tests", "idlelib"} & set(module.parts)


def _shards(documents: Sequence[str], out: Path, name: str, tokenizer: str) -> None:
    """Write documents as shards, if they are not there."""
    text, prefix = out / "text" / f"{name}.jsonl", out / "tokens" / name
    if not prefix.with_suffix(".json").exists():
        text.parent.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(text, "".join(f"{json.dumps({'text': one})}\n" for one in documents))
        prepare([str(text)], tokenizer, str(prefix), workers=1)


def train(name: str, mixture: str, seed: int, args: argparse.Namespace) -> Shifted:
    """Train an arm, or go on with it, and cut it where its text changed."""
    run, tokens = args.out / f"{name}-{seed}", args.out / "tokens"
    first = json.loads((tokens / f"chinese-{seed}.json").read_text(encoding="utf-8"))["tokens"]
    shipped = args.quickstart / "tokens" / "extended"
    overrides = {
        "name": run.name,
        "seed": seed,
        "model.base": args.quickstart / "models" / "base-extended",
        "model.tokenizer": args.quickstart / "tokenizers" / "extended",
        "model.average": f"{{kind: ema, half_life: {args.tokens // 40}}}",
        "sources": f"{{new: {{path: {tokens}/new-{seed}, role: new, order: sequential}}, "
        f"english: {{path: {shipped}/english-train, role: replay}}}}",
        "validation.upstream": tokens / "upstream",
        "validation.audit": tokens / "audit",
        "validation.downstream": shipped / "chinese-validation",
        "validation.sets": f"{{code: {{path: {tokens}/code-validation, role: downstream}}}}",
        "validation.every_tokens": args.tokens // 20,
        "phases.0.tokens": args.tokens,
        "phases.0.mixture": f"{{{mixture}}}",
        "phases.0.schedule": f"{{kind: constant, max_lr: {args.max_lr}, warmup: 5%}}",
        "checkpoint.every_tokens": args.tokens // 2,
        "logging.tensorboard": "false",
    }
    start(run, overrides, args.parallel)
    return cut(history_of(read_attempts(run, say=print)), first)


def cut(records: Sequence[Mapping[str, float]], first: int) -> Shifted:
    """Cut a run's records where its new source had given `first` tokens."""
    taken = [names.source_tokens(name) for name in ("new", "english")]
    audit = names.of_average(names.AUDIT_FORGETTING)
    filled: dict[str, float] = {}
    last_before: dict[str, float] = {}
    read: tuple[list[float], list[float]] = ([], [])
    for record in records:
        filled |= record
        if audit in record:
            changed = filled.get(taken[0], 0.0) > first
            read[changed].append(record[audit])
            last_before = last_before if changed else dict(filled)
    new, english = ([last_before[name], filled[name] - last_before[name]] for name in taken)
    halves = [english[half] / (new[half] + english[half]) for half in (0, 1)]
    bits = [names.of_average(names.stream_bits_per_byte(name)) for name in ("downstream", "downstream/code")]
    before, after = (Half(share, values[-1], max(values)) for share, values in zip(halves, read, strict=True))
    return Shifted(before, after, filled[bits[0]], filled[bits[1]])


def report(found: Mapping[str, Sequence[Shifted]]) -> None:
    """Print a row for each arm, means and deviations over the seeds."""
    rows = []
    for name, runs in found.items():
        columns = [
            ([one.before.replayed for one in runs], ".1%"),
            ([one.before.forgotten for one in runs], "+.4f"),
            ([one.after.replayed for one in runs], ".1%"),
            ([one.after.worst for one in runs], "+.4f"),
            ([one.after.forgotten for one in runs], "+.4f"),
            ([one.chinese for one in runs], ".4f"),
            ([one.code for one in runs], ".4f"),
        ]
        cells = []
        for values, form in columns:
            deviation = statistics.stdev(values) if len(values) > 1 and form != ".1%" else float("nan")
            cells.append(spread(format(statistics.fmean(values), form), deviation))
        rows.append([name, *cells])
    head = ["arm", "replayed, Chinese", "audit", "replayed, code", "audit, at worst", "at the end"]
    print(markdown([*head, "Chinese", "code"], rows))


def main() -> None:
    """Train all arms and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "budget-shift")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=819_200)
    parser.add_argument("--max-lr", default="1e-3", help="of the constant schedule")
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--ratios", type=float, nargs="*", default=[5, 10, 25, 50], help="per cent")
    parser.add_argument("--parallel", type=int, default=1, help="arms at a time, each on one rank")
    args = parser.parse_args()
    args.quickstart, args.out = args.quickstart.resolve(), args.out.resolve()
    held_out(args.quickstart, args.out)
    texts(args.quickstart, args.out, args.seeds, args.tokens)
    steered = "replay_ratio: 25%, replay_max: 90%, decide_every: 2%, on_failure: lower_lr"
    steered += ", measured_samples: 96"
    arms = {f"budget-{args.budget:g}": f"forgetting_budget: {args.budget}, {steered}"}
    arms |= {f"fixed-{ratio:g}": f"replay_ratio: {ratio}%" for ratio in sorted(args.ratios)}
    jobs = [(name, mixture, seed) for seed in range(args.seeds) for name, mixture in arms.items()]
    found: dict[str, list[Shifted]] = {name: [] for name in arms}
    for (name, _, seed), run in trained(jobs, lambda job: train(*job, args), args.parallel):
        found[name].append(run)
        print(f"{name}, seed {seed}: {run}", flush=True)
    report(found)


if __name__ == "__main__":
    main()
