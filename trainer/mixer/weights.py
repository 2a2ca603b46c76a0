"""Compute one exact weight for each source from a segment of the recipe's mixture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from math import lcm

from tokenization.errors import UserError
from trainer.mixer.interleave import LONGEST, denominator
from trainer.recipe.schema import Segment, Source

SIZE_STEPS = 2**15
"""A split by size is rounded to about so many steps: finer than matters, and still a short period."""


def weights_of(
    segment: Segment,
    sources: Mapping[str, Source],
    samples: Mapping[str, int],
    field: str,
    begun_with: Collection[str] | None = None,
) -> tuple[Fraction, ...]:
    """Return exact weights that add up to 1, one for each source in the recipe's order.

    Without `replay_ratio` they are those of the recipe. With it the replay sources get that total and the new
    sources the rest. Each role's total is split in proportion to the weights given for sources of the role
    (the others get nothing), or else to the sources' `samples`. A phase that has begun is split by size among
    the sources that it was `begun_with`: a source that is declared later must not change it.

    Raises:
        UserError: a role has a share but no sources, or the weights need too long a period; names `field`.
    """
    if segment.replay_ratio is None:
        shares = dict(segment.weights)
    else:
        shares = _by_role(segment, segment.replay_ratio, sources, samples, field, begun_with)
    weights = tuple(shares.get(name, Fraction(0)) for name in sources)
    if (needed := denominator(weights)) > LONGEST:
        what = f"needs a common denominator of {needed:,}, above the limit of {LONGEST:,}"
        value = {name: str(share) for name, share in shares.items()}
        fix = "write the weights with fewer digits or a common denominator"
        raise UserError(what, field=field, value=value, fix=fix)
    return weights


def _by_role(
    segment: Segment,
    replay_ratio: Fraction,
    sources: Mapping[str, Source],
    samples: Mapping[str, int],
    field: str,
    begun_with: Collection[str] | None,
) -> dict[str, Fraction]:
    """Split the roles' totals among their sources."""
    shares: dict[str, Fraction] = {}
    by_size: list[tuple[Fraction, list[str]]] = []
    for role, total in (("new", 1 - replay_ratio), ("replay", replay_ratio)):
        members = [name for name, source in sources.items() if source.role == role]
        given = {name: segment.weights[name] for name in members if name in segment.weights}
        if total == 0:
            continue
        if not members:
            what = f"gives role {role} a share of {total}, but no source has this role"
            fix = f"give a source the role {role}, or set replay_ratio to {int(role == 'new')}"
            raise UserError(what, field=f"{field}.replay_ratio", fix=fix)
        if not given:
            known = [name for name in members if begun_with is None or name in begun_with]
            by_size.append((total, known or members))
        elif (sum_given := sum(given.values())) == 0:
            what = f"gives role {role} a share of {total}, but each of its sources a weight of 0"
            raise UserError(what, field=field, fix="give one of them a weight above 0")
        else:
            shares |= {name: total * weight / sum_given for name, weight in given.items()}
    fixed = lcm(replay_ratio.denominator, *(share.denominator for share in shares.values()))
    for total, members in by_size:
        fewest = -(-len(members) // int(total * fixed))
        steps = int(total * fixed) * max(1, fewest, SIZE_STEPS // fixed)
        parts = apportion([samples[name] for name in members], steps)
        shares |= {name: total * part / steps for name, part in zip(members, parts, strict=True)}
    return shares


def apportion(sizes: list[int], steps: int) -> list[int]:
    """Split `steps` in proportion to `sizes` by largest remainder, with at least one step for each.

    There must be at least as many steps as sizes.
    """
    whole = sum(sizes)
    parts = [max(1, size * steps // whole) for size in sizes]
    owed = sorted(range(len(sizes)), key=lambda k: sizes[k] * steps - parts[k] * whole, reverse=True)
    for k in owed[: max(0, steps - sum(parts))]:
        parts[k] += 1
    while sum(parts) > steps:
        parts[parts.index(max(parts))] -= 1
    return parts
