"""Permutations of a source's samples, computed point by point; nothing is stored.

A permutation of [0, n) is a generalised Feistel network (Black and Rogaway 2002, "Ciphers with arbitrary
finite domains") on pairs (left, right) of Z_a x Z_b with a = ceil(sqrt(n)) and b = ceil(n / a). The domain
a * b exceeds n by less than a, so only about one point in sqrt(n) lands outside and has to walk on along its
cycle, and no walk can be longer than a. n may be as large as 2**62.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

Words = NDArray[np.uint64]

_ROUNDS = 16
"""Four are enough for large n (Luby and Rackoff 1988); with sixteen even the 120 permutations of five points
are equally frequent, and a batch may have as few rows."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_STEPS = [np.uint64(number * int(_GOLDEN) % 2**64) for number in range(_ROUNDS)]

_SHIFTS = [np.uint64(shift) for shift in (30, 27, 31)]

_FACTORS = [np.uint64(factor) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]

_HALF, _ONE = np.uint64(32), np.uint64(1)


def key_of(*parts: object) -> int:
    """Make a 64-bit key from what names a permutation; it is the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def subkeys(keys: Words, numbers: Ints) -> Words:
    """Derive the keys of the `numbers`-th member (epoch, window) of the families that `keys` name."""
    return _mix(keys + _words(numbers) * _GOLDEN)


def permute(points: Ints, sizes: Ints, keys: Words) -> Ints:
    """Map each point by the permutation of [0, size) with its key; elementwise on equal shapes.

    For a fixed size and key this is a bijection of [0, size).
    """
    sizes_, keys = _words(sizes), np.asarray(keys, np.uint64)
    images = _feistel(_words(points), sizes_, keys)
    while (outside := np.flatnonzero(images >= sizes_)).size:
        images[outside] = _feistel(images[outside], sizes_[outside], keys[outside])
    return images.astype(np.int64)


def permute_blocks(points: Ints, sizes: Ints, keys: Words, blocks: Ints) -> Ints:
    """Permute the windows of `blocks` samples, and the samples within each: reads stay near each other.

    What is left after the last whole window is a shorter one and comes last.
    """
    window, inside = np.divmod(points, blocks)
    whole = sizes // blocks
    last = window >= whole
    placed = permute(np.where(last, 0, window), np.maximum(whole, 1), keys)
    window = np.where(last, whole, placed)
    width = np.where(last, sizes - whole * blocks, blocks)
    return window * blocks + permute(inside, width, subkeys(keys, window + 1))


def _feistel(points: Words, sizes: Words, keys: Words) -> Words:
    """Make one pass of the network over the domain [0, a * b); the halves are updated in turn."""
    a = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    a += a * a < sizes  # floating point loses the 1 of k * k + 1
    b = (sizes + a - _ONE) // a
    left, right = np.divmod(points, b)
    for number in range(0, _ROUNDS, 2):
        left = _add(left, right, keys + _STEPS[number], a)
        right = _add(right, left, keys + _STEPS[number + 1], b)
    return left * b + right


def _add(half: Words, other: Words, keys: Words, modulus: Words) -> Words:
    """Return (half + hash(other)) mod modulus, without a division: moduli are below 2**32."""
    sum_ = half + ((_mix(other + keys) >> _HALF) * modulus >> _HALF)
    return np.minimum(sum_, sum_ - modulus)  # below 0 it wraps to a huge number


def _mix(word: Words) -> Words:
    """Mix by the finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    word = (word ^ (word >> _SHIFTS[0])) * _FACTORS[0]
    word = (word ^ (word >> _SHIFTS[1])) * _FACTORS[1]
    return word ^ (word >> _SHIFTS[2])


def _words(numbers: Ints) -> Words:
    return np.asarray(numbers, np.int64).astype(np.uint64)
