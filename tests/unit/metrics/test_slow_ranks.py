"""A rank that makes the others wait is named by host and rank; one that is slow for a moment is not."""

from trainer.metrics import names
from trainer.metrics.slow_ranks import SlowRanks


def lines(*steps, hosts=("a", "a", "b", "b")):
    """What is said at a line of the log after each of these steps."""
    ranks, said = SlowRanks(hosts), []
    for seconds in steps:
        ranks.add(seconds)
        said.append(ranks.read()[1])
    return said


EVEN, SLOW = [1.0, 1.1, 0.9, 1.0], [1.0, 1.0, 1.0, 2.0]


def test_the_spread_is_a_mean_over_the_steps_since_the_last_line():
    ranks = SlowRanks(["a", "b", "c"])
    ranks.add([1.0, 1.0, 3.0])
    ranks.add([3.0, 1.0, 3.0])
    assert ranks.read()[0] == {names.RANK_MEDIAN_S: 2.0, names.RANK_MAX_S: 3.0}
    assert ranks.read() == ({}, None)


def test_a_slow_rank_is_named_once_and_again_when_it_falls_back():
    said = lines(SLOW, SLOW, SLOW, SLOW, EVEN, EVEN, EVEN, SLOW, SLOW, SLOW)
    assert [line is not None for line in said] == [*[False] * 2, True, *[False] * 6, True]
    assert said[2].startswith("rank 3 (host b) is slow: ")
    assert "take 2 s a step, those of the median rank 1 s" in said[2]


def test_a_moment_is_not_enough_and_one_rank_alone_has_nobody_to_wait_for_it():
    assert lines(SLOW, SLOW, EVEN, SLOW, SLOW, EVEN) == [None] * 6
    assert lines([1.0], [9.0], [1.0], hosts=("a",)) == [None] * 3


def test_of_two_ranks_the_faster_one_is_the_median():
    assert lines([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], hosts=("a", "b"))[2].startswith("rank 1 (host b)")
