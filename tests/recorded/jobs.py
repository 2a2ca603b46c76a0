"""The short runs whose numbers are recorded: their recipes, how they are trained, read and compared.

Every run is a variation of `made_by_85773d8/recipe.yaml`, trained by two ranks on the shards there.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import runs
import torch
import yaml

HERE = Path(__file__).resolve().parent
MADE = HERE / "made_by_85773d8"
"""A run, an export, shards and a tokenizer that commit 85773d8 made; see `make_before.py`."""
NUMBERS = HERE / "numbers"
"""What the runs recorded at commit 85773d8, a file for each; see `make.py`."""

STEP = 8 * 32
"""Tokens in a step."""
SAME_AS_MADE = "as-made"
"""The recipe of `made_by_85773d8/` as it is, trained to its end without an interruption."""
KILLED = "killed"
"""The run that loses all its processes in its second phase, and is started again."""
KILLED_AT = 7
"""The step after which it is killed, at the earliest: phase 2 begins with step 5 and saves after step 6."""
TOLERANCE = 1e-6
"""Relative, on a machine of another kind than the one that recorded the numbers."""
ROUNDED = {"bf16"}
"""Runs whose losses another kind of machine cannot reproduce: one rounding to bf16 is a change of 0.4 %."""

Tree = dict[str, Any]
"""A recipe, as YAML holds it."""
Record = dict[str, Any]
"""`step` and the metrics of a step, under the names that commit 85773d8 gave them."""


def recorded_name(metric: str) -> str:
    """Translates the name of a metric to the name that it had at commit 85773d8."""
    return metric.replace("/source/", "/")


def is_exact(metric: str) -> bool:
    """Tells whether a metric is counted or decided, and so is equal on every machine."""
    counted = metric.startswith(("tokens/", "epochs/"))
    return counted or metric in ("step", "tokens", "lr", "data/samples_crc32")


def is_recorded(metric: str) -> bool:
    """Tells whether a metric depends on the recipe alone, and not on the time or the machine's load."""
    return metric not in ("time", "attempt") and not metric.startswith(("perf/", "mem/"))


# ------------------------------------------------------------------------------------------- the recipes


def made_recipe() -> Tree:
    """The recipe of `made_by_85773d8/`: two phases of 4 and 6 steps, saved every 2, scored every 4."""
    return yaml.safe_load((MADE / "recipe.yaml").read_text(encoding="utf-8"))


def recipe(name: str, stage: int, **changes: Any) -> Tree:
    """The same with a second layer, at a ZeRO stage, and with other fields."""
    tree = made_recipe() | {"run_dir": name, "deepspeed": f"zero{stage}.json"} | changes
    tree["model"]["init"]["num_hidden_layers"] = 2
    return tree


def bf16(name: str, stage: int) -> Tree:
    """A run that computes in bf16, with master weights in fp32."""
    tree = recipe(name, stage)
    tree["model"]["dtype"] = "bf16"
    return tree


def frozen(name: str, stage: int) -> Tree:
    """A run that trains the embeddings first, and then what two patterns name."""
    tree = recipe(name, stage)
    first, second = tree["phases"]
    first["train"] = "embeddings"
    first["schedule"]["lr_scale"] = {"embeddings": 2}
    second |= {"train": [r"self_attn\.[qv]_proj", "norm"], "keep_optimizer": False}
    second["schedule"]["lr_scale"] = {}
    return tree


def new_rows(name: str, stage: int) -> Tree:
    """A run that trains the last rows of the embeddings first, and gives them more LR afterwards."""
    tree = recipe(name, stage)
    tree["model"] |= {"init": None, "base": "grown"}
    first, second = tree["phases"]
    first["train"] = "new_rows"
    second["keep_optimizer"] = False
    second["schedule"]["lr_scale"] = {"embeddings": 0.5, "new_rows": 2}
    return tree


def mixture(name: str, stage: int) -> Tree:
    """A run whose weights change within a phase, with other orders and curves than the rest."""
    tree = recipe(name, stage)
    tree["sources"]["en"] |= {"order": "sequential", "offset": 5}
    tree["sources"]["zh"] |= {"order": "blocks", "block": 8}
    first, second = tree["phases"]
    first["mixture"] = [{"zh": "1/2", "en": "1/2"}, {"from": 2 * STEP, "replay_ratio": "1/8"}]
    first["schedule"] = {"kind": "infinite", "max_lr": 1e-3, "warmup": "5%", "cooldown": "40%"}
    anneal = {"from_tokens": 4 * STEP, "tokens": 2 * STEP, "end_lr": 1e-5, "shape": "1-sqrt"}
    second["schedule"] = {
        "kind": "cosine",
        "max_lr": 1e-3,
        "start_lr": "reached",
        "cycles": 2,
        "anneal": anneal,
    }
    return tree


def killed() -> Tree:
    """A run with a second phase that is long enough to be killed in."""
    tree = recipe(KILLED, 2)
    tree["phases"][1]["tokens"] = 16 * STEP
    return tree


def jobs() -> list[runs.Job]:
    """All runs of the one launch; the killed run goes on in it."""
    trees = [
        made_recipe() | {"run_dir": SAME_AS_MADE},
        *(recipe(f"zero-{stage}", stage) for stage in range(4)),
        recipe("document-mask", 1, document_mask="causal_per_document"),
        recipe("micro-batches", 2, micro_batch_size=2),
        bf16("bf16", 2),
        *(frozen(f"frozen-zero-{stage}", stage) for stage in (1, 3)),
        *(new_rows(f"new-rows-zero-{stage}", stage) for stage in (0, 3)),
        mixture("mixture", 0),
        killed(),
    ]
    return [*map(runs.Job, trees), runs.Job(recipe("skipped-step", 1), poison=(2,))]


def names() -> list[str]:
    """The names of all recorded runs."""
    return [job.tree["run_dir"] for job in jobs()]


# ------------------------------------------------------------------------------------- training, reading


def train(folder: Path) -> None:
    """Trains all runs in `folder`, each in the directory of its name: two launches, about half a minute."""
    for name in ("tokenizer", "data"):
        shutil.copytree(MADE / name, folder / name)
    shutil.copytree(MADE / "export", folder / "grown")
    _declare_new_rows(folder / "grown" / "config.json", 20)
    for stage in range(4):
        preset = {"zero_optimization": {"stage": stage}}
        (folder / f"zero{stage}.json").write_text(json.dumps(preset), encoding="utf-8")
    with contextlib.chdir(folder):  # the recipes' paths are relative
        recipe_file = runs.write(killed(), folder / f"{KILLED}.yaml")
        runs.kill_after(recipe_file, folder / KILLED, 2, step=KILLED_AT)
        ended = runs.launch_several(folder, jobs(), 2)
    assert {job["status"] for job in ended} == {0}


def _declare_new_rows(config: Path, rows: int) -> None:
    """Declares the last `rows` of a model's embeddings appended, as `rewarm model extend` does."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields["base_vocab_size"] = fields["vocab_size"] - rows
    config.write_text(json.dumps(fields), encoding="utf-8")


def read(run: Path) -> list[Record]:
    """Reads what a run directory records of each step, as the last start of the run did it."""
    steps: dict[int, Record] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "restored_step" in record:
            kept = record["restored_step"]
            steps = {step: found for step, found in steps.items() if kept is not None and step <= kept}
        else:
            values = {recorded_name(name): value for name, value in record.items() if is_recorded(name)}
            steps.setdefault(record["step"], {}).update(values)
    return [steps[step] for step in sorted(steps)]


def starts(run: Path) -> list[str]:
    """Reads what each start of a run decided."""
    lines = (run / "lineage.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["kind"] for line in lines]


# -------------------------------------------------------------------------------------------- comparison


def environment() -> dict[str, str]:
    """Describes what the numbers depend on beside the code: the machine and the libraries."""
    machine = {"cpu": _cpu(), "instructions": torch.backends.cpu.get_cpu_capability()}
    packages = ("torch", "deepspeed", "transformers", "numpy")
    return machine | {name: version(name) for name in packages} | {"python": platform.python_version()}


def _cpu() -> str:
    """The model of the CPU, with the numbers that tell apart what a virtual machine calls by one name."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            field, _, value = line.partition(":")
            fields.setdefault(field.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format(**fields)


def same_kind(recorded: dict[str, str]) -> bool:
    """Tells whether this machine computes as the one that recorded the numbers: to the last digit."""
    here = environment()
    return all(here[name] == recorded[name] for name in ("cpu", "instructions", "torch"))


def differences(expected: list[Record], found: list[Record], *, exact: bool, skip: bool = False) -> list[str]:
    """Lists each number of `expected` that is another one in `found`; metrics that are new do not count.

    With `exact` all numbers must be equal to the last digit; else those that are computed may differ by
    `TOLERANCE`, and with `skip` they are not compared at all.
    """
    steps = [[record["step"] for record in records] for records in (expected, found)]
    if steps[0] != steps[1]:
        return [f"steps {steps[1]} in place of {steps[0]}"]
    return [
        f"step {before['step']}: {metric} is {after.get(metric)!r}, recorded was {value!r}"
        for before, after in zip(expected, found, strict=True)
        for metric, value in before.items()
        if not (skip and not is_exact(metric))
        and not _agree(metric, value, after.get(metric), exact or is_exact(metric))
    ]


def _agree(metric: str, recorded: float | str, found: float | str | None, exact: bool) -> bool:
    if exact or isinstance(recorded, str) or not isinstance(found, (int, float)):
        return recorded == found  # infinite numbers are recorded as words
    # Forgetting is a difference of two numbers of about 1, and is as exact as they are.
    absolute = TOLERANCE if metric.endswith("/forgetting") else 0.0
    return math.isclose(recorded, found, rel_tol=TOLERANCE, abs_tol=absolute)


def render(commit: str, records: list[Record]) -> str:
    """The JSON of a recorded run: a line for each step, with all digits of every number."""
    lines = ",\n    ".join(json.dumps(record, ensure_ascii=False) for record in records)
    head = json.dumps({"commit": commit, **environment()})
    return f'{{\n  "environment": {head},\n  "steps": [\n    {lines}\n  ]\n}}\n'


def recorded(name: str) -> tuple[dict[str, str], list[Record]]:
    """Reads the recorded numbers of a run, and the environment that made them."""
    tree = json.loads((NUMBERS / f"{name}.json").read_text(encoding="utf-8"))
    return tree["environment"], tree["steps"]
