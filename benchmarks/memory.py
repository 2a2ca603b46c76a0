"""Bytes per parameter and rank at every ZeRO stage, measured on the CPU and by theory.

    python -m benchmarks.memory                                     # about five minutes on two idle cores
    python -m benchmarks.memory --presets zero2 --ranks 1           # one row, half a minute
    python -m benchmarks.memory --zero '{"reduce_bucket_size": 2000000}'  # what a setting brings

The trainer's engine takes three steps of a LLaMA of 60M parameters in bf16 (at ZeRO-0 in fp32, the only
precision that the trainer allows there) on a few tokens, so that activations do not count. A step has two
micro batches, so that gradients are accumulated. Measured are tensors, in the last step, on the rank that
holds most:

- held: the bytes of all distinct storages that are alive between two steps;
- peak: the most that were alive at any moment of the step.

Both are counted as operators make storages and as storages die, whatever thread frees them
(`benchmarks.traced.LiveBytes`): PyTorch's profiler misses what threads of the network free, and more of it
on a busy machine. Before the last step the count is held against all tensors that Python can reach.

Interpreter, libraries and buffers of the network are not in it. With offload, device and host are the same
memory on the CPU: the row is their sum.

Theory, in bytes per parameter on one of W ranks (`THEORY`):

- paper: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5: 16-bit weights and gradients, fp32 master
  weights and both moments of Adam;
- ours: the same with gradients that are added in fp32 (`trainer.engine.ds_config.FP32_SUMS`), 4 bytes in
  place of 2, and what DeepSpeed 0.19 keeps beside them;
- plan: what `rewarm plan` expects (`trainer.plan.memory`), which is ours and the working set: buckets,
  gathered weights, the gradients that the optimizer takes at a time, the loss.

At ZeRO-3 DeepSpeed keeps up to 1e9 gathered parameters, and the trainer steps 1e8 at a time. Both are a small
part of a 7B model, and more than all of this one: they are scaled to it (`scaled`). Buckets are not.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.ranks import ROOT, join, leave, rank_folder, run_ranks, surroundings

STEPS = 3


@dataclass(frozen=True)
class Bytes:
    """Bytes per parameter: what every rank holds, and what all ranks share."""

    whole: int
    shared: int = 0

    def on(self, ranks: int) -> float:
        """On one of so many ranks."""
        return self.whole + self.shared / ranks

    def __str__(self) -> str:
        terms = [str(self.whole)] * bool(self.whole) + [f"{self.shared}/W"] * bool(self.shared)
        return " + ".join(terms)


@dataclass(frozen=True)
class Theory:
    """What a preset should take."""

    paper: Bytes
    held: Bytes
    """Ours, between steps."""
    peak: Bytes
    """Ours, within a step."""


THEORY = {
    # fp32: weights 4, moments 8, gradients 4.
    "zero0": Theory(Bytes(16), Bytes(12), Bytes(16)),
    # Weights 2, sums of gradients 4; of this rank's part masters 4, moments 8, and the sums once more, flat.
    "zero1": Theory(Bytes(4, 12), Bytes(2, 12), Bytes(6, 16)),
    "zero2": Theory(Bytes(2, 14), Bytes(2, 12), Bytes(2, 16)),
    # The sums are one buffer that is never freed.
    "zero3": Theory(Bytes(0, 16), Bytes(0, 18), Bytes(0, 18)),
    # On the host the states 12, sums of gradients 4 and a 16-bit copy 2, all kept; on the device the sums 4.
    "zero2-offload": Theory(Bytes(2, 14), Bytes(2, 18), Bytes(2, 22)),
    # On the host the states 12, sums of gradients 4, and 4 in the form that the optimizer takes.
    "zero3-offload": Theory(Bytes(0, 16), Bytes(0, 22), Bytes(0, 22)),
}


@dataclass(frozen=True)
class Case:
    """What is trained."""

    preset: str
    ranks: int
    accumulation: int
    zero: dict[str, Any]
    """Fields of zero_optimization beside the preset's."""


@dataclass(frozen=True)
class Measured:
    """Bytes per parameter on the rank that holds most."""

    held: float
    peak: float
    planned: float
    """The peak that `rewarm plan` expects."""
    parameters: int


def main() -> int:
    args = options()
    if args.worker:
        return work([Case(**one) for one in json.loads(args.worker)])
    results = []
    for ranks in args.ranks:
        cases = [Case(preset, ranks, args.accumulation, args.zero) for preset in args.presets]
        told = ["--worker", json.dumps([asdict(case) for case in cases])]
        for case, *found in zip(cases, *run_ranks("benchmarks.memory", told, ranks, threads=1), strict=True):
            most = Measured(**{name: max(one[name] for one in found) for name in found[0]})
            print(f"{case.preset}, {ranks} ranks: {most}", file=sys.stderr)
            results.append((case, most))
    results.sort(key=lambda result: (args.presets.index(result[0].preset), result[0].ranks))
    if args.out:
        rows = [{**asdict(case), **asdict(found)} for case, found in results]
        args.out.write_text(
            json.dumps({**surroundings(), "results": rows}, indent=1) + "\n", encoding="utf-8"
        )
    print(table(results))
    return 0


def options() -> argparse.Namespace:
    """The command line; `--worker` is one rank of one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=list(THEORY), default=list(THEORY))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--zero", type=json.loads, default={}, help="fields of zero_optimization, as JSON")
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(cases: list[Case]) -> int:
    """One rank: train each case in turn, and leave the bytes that it held."""
    join(cases[0].ranks)
    leave([measure(case, rank_folder() / str(number)) for number, case in enumerate(cases)])
    return 0


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Train, and return the bytes per parameter that this rank held."""
    from benchmarks.gpu import engines
    from benchmarks.traced import LiveBytes
    from trainer.engine.ds_config import read_preset
    from trainer.model.size import parameters
    from trainer.plan.memory import Shape, estimate
    from trainer.plan.presets import memory_settings

    folder.mkdir(parents=True)
    shape, vocab_size = engines.Shape("60M", 768, 2048, 8, 12), 2048
    fields = shape.config(vocab_size)
    count = parameters(fields)
    setting = engines.Setting(
        shape,
        vocab_size,
        micro_batch_size=1,
        accumulation=case.accumulation,
        seq_len=8,
        dtype="fp32" if case.preset == "zero0" else "bf16",
        preset=str(preset_of(case.preset, case.zero, count, folder)),
        ranks=case.ranks,
    )
    store = engines.make_noise(folder, setting.vocab_size, 40 * setting.tokens_per_step * case.ranks)
    recipe = setting.recipe(folder)
    settings = memory_settings(recipe, read_preset(recipe.deepspeed), fields, case.ranks, cuda=False)
    memory = estimate(Shape.of(fields), settings)
    before, live = reachable_bytes(), LiveBytes()
    with live:
        ours = engines.Ours(setting, folder, store)
        ours.steps(STEPS - 1)
        engines.forget()
        held = live.peak = live.now
        reached = reachable_bytes() - before
        ours.steps(1)
    ours.close()
    # The two counts are independent. Where they disagree by more, one of them misses tensors.
    if abs(reached - held) > 0.02 * held:
        raise SystemExit(
            f"{held:,} bytes of tensors are counted between steps, and {reached:,} can be reached"
        )
    counted = {"held": held, "peak": live.peak, "planned": memory.peak(1) + memory.host}
    found = {name: size / count for name, size in counted.items()}
    print(case, found, flush=True)  # in this rank's log
    return {**found, "parameters": count}


def preset_of(name: str, zero: dict[str, Any], parameters: int, folder: Path) -> Path:
    """Write the preset for a model of this size, with the fields `zero`, and return where."""
    preset = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    if preset["zero_optimization"]["stage"] == 3:
        preset["zero_optimization"] |= scaled(parameters)
    preset["zero_optimization"] |= zero
    path = folder / f"{name}.json"
    path.write_text(json.dumps(preset))
    return path


def scaled(parameters: int) -> dict[str, int]:
    """ZeRO-3's working sets, as large a part of this model as the defaults are of LLaMA-2 7B."""
    share = parameters / 6_738_415_616
    return {
        "stage3_max_live_parameters": int(1e9 * share),
        "stage3_max_reuse_distance": int(1e9 * share),
        "sub_group_size": int(1e8 * share),
    }


def reachable_bytes() -> int:
    """Bytes of the distinct storages of all tensors that the garbage collector knows."""
    import torch
    from torch._subclasses import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    storages = {}
    for one in gc.get_objects():
        # `type`, since isinstance would wake lazy modules. What stands in for tensors while a compiler traces
        # has no storage.
        kind = type(one)
        if not issubclass(kind, torch.Tensor) or issubclass(kind, (FakeTensor, FunctionalTensor)):
            continue
        if one.device.type == "cpu" and one.layout == torch.strided:
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def table(results: list[tuple[Case, Measured]]) -> str:
    """Markdown: bytes per parameter, measured and by the three theories."""
    lines = [
        "| preset | ranks | held between steps | ours | peak of a step | ours | working set, MiB | plan "
        "| measured / plan | measured / ours | paper | measured / paper |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, found in results:
        theory = THEORY[case.preset]
        cells = [case.preset, str(case.ranks), f"{found.held:.2f}", told(theory.held, case.ranks)]
        cells += [f"{found.peak:.2f}", told(theory.peak, case.ranks)]
        working = (found.planned - theory.peak.on(case.ranks)) * found.parameters
        cells += [f"{working / 2**20:.0f}", f"{found.planned:.2f}", f"{found.peak / found.planned:.2f}"]
        cells.append(f"{found.peak / theory.peak.on(case.ranks):.2f}")
        cells += [told(theory.paper, case.ranks), f"{found.peak / theory.paper.on(case.ranks):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(theory: Bytes, ranks: int) -> str:
    """The formula and its value."""
    return f"{theory} = {theory.on(ranks):g}" if theory.shared else str(theory)


if __name__ == "__main__":
    sys.exit(main())
