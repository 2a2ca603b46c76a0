"""Orders of a source's samples: bijections for every size, keyed, and near-sequential in blocks."""

from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.mixer import permutation
from trainer.mixer.permutation import key_of, permute, permute_blocks, subkeys

WORD = 2**64


def images_of(size, key, points=None):
    points = np.arange(size) if points is None else np.asarray(points)
    return permute(points, np.full(points.shape, size), np.full(points.shape, key, np.uint64))


def reference(point, size, key):
    """The same network in whole numbers without bounds, written from the module's description."""

    def mix(word):
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
        return word ^ word >> 31

    a = isqrt(size - 1) + 1
    b = -(-size // a)
    while True:
        halves = list(divmod(point, b))
        for number in range(16):
            changed, other, modulus = (0, 1, a) if number % 2 == 0 else (1, 0, b)
            word = mix((halves[other] + key + number * 0x9E3779B97F4A7C15) % WORD)
            halves[changed] = (halves[changed] + ((word >> 32) * modulus >> 32)) % modulus
        point = halves[0] * b + halves[1]
        if point < size:
            return point


@pytest.mark.parametrize("first", range(1, 5001, 500))
def test_every_size_to_5000_is_permuted_whole(first):
    sizes = np.arange(first, first + 500)
    begins = np.cumsum(sizes) - sizes
    points = np.arange(sizes.sum()) - np.repeat(begins, sizes)
    images = permute(points, np.repeat(sizes, sizes), np.repeat(subkeys(np.uint64([9]), sizes), sizes))
    assert (images >= 0).all()
    assert (images < np.repeat(sizes, sizes)).all()
    hits = np.bincount(images + np.repeat(begins, sizes), minlength=sizes.sum())
    assert (hits == 1).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(5_000, 400_000), st.integers(0, WORD - 1))
def test_large_sizes_are_permuted_whole(size, key):
    assert (np.bincount(images_of(size, key), minlength=size) == 1).all()


@settings(deadline=None, max_examples=150)
@given(
    st.data(),
    st.integers(1, 2**62) | st.integers(1, 2**31 - 1).flatmap(lambda k: st.integers(k * k, k * k + 1)),
    st.integers(0, WORD - 1),
)
def test_any_size_agrees_with_whole_number_arithmetic(data, size, key):
    points = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    assert images_of(size, key, points).tolist() == [reference(point, size, key) for point in points]


@pytest.mark.parametrize("size", [1000**2 + 1, 999**2 * 2, 10**6 - 1, 2**20 + 1])
def test_no_walk_runs_long(size, monkeypatch):
    passes = []
    network = permutation._feistel
    monkeypatch.setattr(permutation, "_feistel", lambda *a: passes.append(len(a[0])) or network(*a))
    images_of(size, 1, np.arange(200_000))
    assert len(passes) <= 5
    assert sum(passes) < 200_000 * 1.005


def test_all_orders_of_a_few_points_are_equally_frequent():
    trials = 48_000
    keys = subkeys(np.full(trials, key_of("test"), np.uint64), np.arange(trials))
    columns = [permute(np.full(trials, point), np.full(trials, 4), keys) for point in range(4)]
    _, frequency = np.unique(sum(column * 4**k for k, column in enumerate(columns)), return_counts=True)
    assert len(frequency) == 24
    assert ((frequency - 2000) ** 2 / 2000).sum() < 41.6  # chi squared, 23 degrees of freedom, 1 %


def test_neighbours_are_torn_apart_and_keys_give_unrelated_orders():
    one, other = images_of(10_007, 1), images_of(10_007, 2)
    assert abs(np.corrcoef(one, np.arange(10_007))[0, 1]) < 0.03
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.03


def blocks_of(size, block, key=3):
    whole = np.full(size, size)
    return permute_blocks(np.arange(size), whole, np.full(size, key, np.uint64), np.full(size, block))


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
def test_blocks_are_permuted_whole_and_one_after_another(block):
    for size in [*range(1, 40), 63, 64, 65, 500, 1000, 1001]:
        images = blocks_of(size, block)
        assert sorted(images.tolist()) == list(range(size))
        for begin in range(0, size, block):
            assert len(set((images[begin : begin + block] // block).tolist())) == 1


def test_blocks_are_shuffled_among_each_other_and_inside():
    images = blocks_of(1000, 100).reshape(10, 100)
    order = images[:, 0] // 100
    assert order.tolist() != sorted(order.tolist())
    inside = images % 100
    assert all(row.tolist() != sorted(row.tolist()) for row in inside)
    assert len({tuple(row.tolist()) for row in inside}) == 10  # each window in an order of its own


def test_keys_are_the_same_on_every_machine():
    # printf 'source\x1f7\x1fzh-web' | b2sum -l 64, read as a little-endian number
    assert key_of("source", 7, "zh-web") == int.from_bytes(bytes.fromhex("9ae21c014e1e6d68"), "little")
    assert key_of("a", "b") != key_of("ab")
