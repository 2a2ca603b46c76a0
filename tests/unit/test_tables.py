"""The plain-text table: columns line up, whatever alphabet is in them."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from tokenization.tables import text_table


def test_head_rule_and_sides():
    assert text_table(("name", "tokens"), [("a", "1,000"), ("复述复", "7")], "<>").splitlines() == [
        "name    tokens",
        "------  ------",
        "a        1,000",
        "复述复       7",
    ]


CELLS = st.text(st.sampled_from("abz中文，0"), min_size=1, max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_a_last_column_on_the_right_ends_at_one_place(rows):
    def columns(line):
        return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in line)

    assert len({columns(line) for line in text_table(("left", "right"), rows, "<>").splitlines()}) == 1
