"""Kills a small run of two ranks at random moments and compares what is left with an undisturbed run.

    python benchmarks/chaos.py               # 100 kills
    python benchmarks/chaos.py --kills 5      # a minute or two

SIGKILL to one rank or to both, at starts, between steps and in the middle of synchronous and asynchronous
saves; nothing is cleared by hand in between. A tenth of the starts goes through the `deepspeed` launcher,
the others are forked. Prints Markdown; exits 1 if any bit, any metric or any step differs.
"""

from __future__ import annotations

import argparse
import collections
import os
import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers import crashes, runs  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=None, help="default: two per kill")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    steps = args.steps or max(40, 2 * args.kills)
    os.environ.update(runs.environment())
    os.environ["PYTHONPATH"] = sys.path[0]  # for the ranks that are forked
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return torment(Path(folder), steps, args)


def torment(folder: Path, steps: int, args: argparse.Namespace) -> int:
    data = runs.make_data(folder)
    recipes = {}
    for name in ("undisturbed", "tormented"):
        tree = runs.long_recipe(data, folder / name, steps)
        recipes[name] = runs.write(tree, folder / f"{name}.yaml")
    began = time.monotonic()
    statuses = crashes.Started(recipes["undisturbed"], None, folder / "log").end()
    if statuses != [0, 0]:
        print((folder / "log").read_text(), file=sys.stderr)
        return 1
    kills = crashes.plan(args.kills, steps, args.seed, launched=args.kills // 10)
    rows: list[str] = []

    def tell(row: str) -> None:
        rows.append(row)
        print(row, file=sys.stderr, flush=True)

    struck = crashes.torment(recipes["tormented"], folder / "tormented", kills, folder / "log", tell)
    found = crashes.differences(folder / "undisturbed", folder / "tormented")
    print(table(kills, rows, struck, steps, args.seed, time.monotonic() - began))
    print("\n".join(found) or "weights, moments, metrics: equal to the bit; no step missing or done twice")
    return 1 if found or struck < len(kills) else 0


def table(
    kills: list[crashes.Kill], rows: list[str], struck: int, steps: int, seed: int, seconds: float
) -> str:
    hits = collections.Counter("saving" if "saving" in row else "other" for row in rows)
    counts = [
        ("kills that struck", struck),
        ("in the middle of a save", hits["saving"]),
        ("of one rank", sum(kill.ranks == "one" for kill in kills)),
        ("of all ranks", sum(kill.ranks == "all" for kill in kills)),
        ("with asynchronous saves", sum(kill.asynchronous for kill in kills)),
        ("under the deepspeed launcher", sum(kill.launcher for kill in kills)),
    ]
    head = (
        f"2 ranks, ZeRO-2, {steps} steps, a save every 3, seed {seed}; {seconds:.0f} s; "
        f"{os.cpu_count()} cores, "
        f"{platform.platform()}; deepspeed {version('deepspeed')}, torch {version('torch')}; {date.today()}"
    )
    lines = [f"| {what} | {count} |" for what, count in counts]
    return "\n".join([head, "", "| what | number |", "| --- | --: |", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
