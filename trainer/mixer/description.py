"""What a mixture records about itself in a checkpoint, and how to compare two such records."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any


def weights_in(data: Mapping[str, Any], samples: int) -> dict[str, float]:
    """Shares by source name of the first `samples` samples of a phase, from the mixer's description."""
    starts = sorted(
        (int(start), key.removesuffix("from_sample"))
        for key, start in data.items()
        if key.startswith("mixture.") and key.endswith(".from_sample")
    )
    stops = [start for start, _ in starts[1:]] + [samples]
    found: dict[str, float] = {}
    for (start, place), stop in zip(starts, stops, strict=True):
        held = max(min(stop, samples) - start, 0) / max(samples, 1)
        for key, weight in data.items():
            if key.startswith(place) and key != f"{place}from_sample":
                name = key.removeprefix(place)
                found[name] = found.get(name, 0.0) + held * float(Fraction(str(weight)))
    return found


def truncated(data: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The mixer's description of a phase that ends after so many samples, without what it does not reach."""
    end = ".from_sample"
    late = tuple(
        key.removesuffix("from_sample")
        for key, start in data.items()
        if key.startswith("mixture.") and key.endswith(end) and int(start) >= max(samples, 1)
    )
    kept = {key: value for key, value in data.items() if not key.startswith(late)}
    used = {key.split(".", 2)[2] for key in kept if key.startswith("mixture.")}
    gone = sources_of(data) - used
    kept = {
        key: value
        for key, value in kept.items()
        if key.endswith(".taken_before") or key.removeprefix("sources.").rpartition(".")[0] not in gone
    }
    places = sorted(value for key, value in kept.items() if key.endswith(".place"))
    return {key: places.index(value) if key.endswith(".place") else value for key, value in kept.items()}


def sources_of(data: Mapping[str, Any]) -> set[str]:
    """Names of the sources that a phase takes from, from the mixer's description."""
    end = ".fingerprint"
    return {key.removeprefix("sources.").removesuffix(end) for key in data if key.endswith(end)}


def fingerprint_of(data: Mapping[str, Any], source: str) -> str:
    """A source's fingerprint, from the mixer's description of a phase."""
    return str(data[f"sources.{source}.fingerprint"])
