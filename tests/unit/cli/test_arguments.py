"""Arguments with a form of their own: parsed, or refused with what was written."""

import argparse
from fractions import Fraction

import pytest

from trainer.cli import arguments


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (arguments.fraction, "0.5%", Fraction(1, 200)),
        (arguments.fraction, "1/3", Fraction(1, 3)),
        (arguments.whole_number, "1e9", 10**9),
        (arguments.whole_number, "0", 0),
        (arguments.whole_numbers, "0,1e3", [0, 1000]),
        (arguments.positive_number, "7", 7),
        (arguments.prefix_text, "data/zh", "data/zh"),
        (arguments.part_of, "3/8", (3, 8)),
    ],
)
def test_values(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (arguments.fraction, "half"),
        (arguments.whole_number, "1.5"),
        (arguments.whole_numbers, "0,,1"),
        (arguments.positive_number, "0"),
        (arguments.positive_number, "24,000"),
        (arguments.prefix_text, "data/"),
        (arguments.prefix_text, ""),
        *((arguments.part_of, text) for text in ("0/8", "9/8", "3", "a/b", "1/", "-1/2")),
    ],
)
def test_refusals(parse, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)
