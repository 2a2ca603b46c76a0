"""The score of a role with several validation sets: the weighted mean of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import xxhash

from trainer.recipe.validation import Role

Means = Mapping[Role, Mapping[str, Fraction]]
"""For each role the weights of its sets by name; see `Validation.means`."""


def weighted_mean(weights: Mapping[str, Fraction], scores: Mapping[str, float]) -> float | None:
    """Return the mean of the sets' scores; None if a set has no score."""
    if any(name not in scores for name in weights):
        return None
    return sum(float(weight) * scores[name] for name, weight in weights.items())


def with_means(measured: Mapping[str, dict[str, Any]], means: Means) -> dict[str, dict[str, Any]]:
    """Add to what each set's scores are measured on what each mean is measured on: all of its sets."""
    found = dict(measured)
    for role, weights in means.items():
        if not all(name in measured for name in weights):
            continue
        parts = [(name, str(weight), measured[name]) for name, weight in sorted(weights.items())]
        found[role] = {
            **parts[0][2],
            "fingerprint": xxhash.xxh3_128_hexdigest(repr(parts).encode()),
            "tokens": sum(facts["tokens"] for _, _, facts in parts),
            "sets": ", ".join(f"{weight} {name}" for name, weight, _ in parts),
        }
    return found
