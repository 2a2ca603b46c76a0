"""Show the steps that a run did twice, before a kill and after the restore, and whether they are equal.

python launch/quickstart/compare_restored.py RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.metrics import names
from trainer.metrics.jsonl import equal_numbers, read_attempts, trained_twice

COMPARED = (names.LOSS, names.LR, names.GRAD_NORM, names.SAMPLES_CRC32)


def main(run: Path) -> int:
    """0 if every step done twice is equal to the last digit: loss, LR, gradient norm and samples.

    What only one of the two lines has is not compared: a save's line holds no loss.
    """
    attempts = read_attempts(run)
    pairs = [
        (before, after, common)
        for before, after in trained_twice(attempts)
        if (common := [metric for metric in COMPARED if metric in before and metric in after])
    ]
    restored = [attempt.restored_step for attempt in attempts if attempt.restored_step is not None]
    print(
        f"{run.name}: restored from the checkpoints of steps {restored}; {len(pairs)} steps were done twice"
    )
    same = True
    for before, after, common in pairs:
        equal = all(equal_numbers(before[metric], after[metric]) for metric in common)
        same &= equal
        shown = "  ".join(
            f"{metric} {before[metric]!r} / {after[metric]!r}"
            for metric in (names.LOSS, names.LR)
            if metric in common
        )
        print(f"  step {before['step']:>5}  {shown}  {'equal' if equal else 'DIFFERENT'}")
    print("all equal to the last digit" if same and pairs else "NOT EQUAL" if pairs else "nothing to compare")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
