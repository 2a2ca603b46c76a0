"""Names in pictures: in full, apart from each other, and in a key where they have no room."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.charts import Line, chart
from trainer.report.document import size_of, svg_document
from trainer.report.labels import Box, Label, beside_points, crowded, in_margin, key_below, text_width

GRID = [
    f"max_lr-{rate}-replay_ratio-{share} ({size})"
    for rate in ("1e-4", "3e-4", "1e-3")
    for share in (0, 5, 25)
    for size in ("small", "medium")
]


def drawn(names, at_end=False, joined=True):
    lines = [
        Line(name, number, [0.0, 1.0 + number / 7], [1.0, (number * 5 % 18) / 9], joined=joined)
        for number, name in enumerate(names)
    ]
    return chart(lines, x_format="{:.1f}".format, y_format="{:.1f}".format, at_end=at_end)


def words(picture):
    """(x, y, text) of every name and number in a picture."""
    found = re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)" class="name"[^>]*>([^<]*)', picture)
    return [(float(x), float(y), text) for x, y, text in found]


def apart(found):
    boxes = [Box(x, y - 10, x + text_width(text), y + 3) for x, y, text in found]
    return not crowded(boxes, [])


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "names",
    [["infinite-cosine", "infinite-inverse-sqrt", "schedule-restarted"], ["replay-0", "replay-25"]],
)
def test_names_that_have_room_stand_in_full_at_the_ends(names, at_end):
    found = words(picture := drawn(names, at_end))
    assert sorted(text for *_, text in found) == sorted(names)
    assert size_of(picture) == (480, 300)
    assert apart(found)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("names", [GRID, GRID[:2], [f"replay-{share}" for share in range(30)]])
def test_names_without_room_are_in_full_in_a_key_that_numbers_point_to(names, at_end):
    found = words(picture := drawn(names, at_end and len(names) > 2, joined=False))
    numbers = [str(number) for number in range(1, len(names) + 1)]
    keyed = [f"{number} {name}" for number, name in zip(numbers, names, strict=True)]
    assert sorted(text for *_, text in found) == sorted(numbers + keyed)
    assert apart(found)
    width, height = size_of(picture)
    assert height > 300
    assert all(x >= 0 and x + text_width(text) <= width and y < height for x, y, text in found)
    assert f'height="{height}"' in svg_document([picture])


@given(
    names=st.lists(st.text("ab-_= W复(", min_size=1, max_size=120), min_size=1, max_size=9),
    width=st.integers(240, 720),
)
def test_a_key_holds_every_letter_of_every_name_inside_the_picture(names, width):
    labels = [Label("", name, "#000", 0, 0) for name in names]
    text, height = key_below(labels, width, 300)
    found = words(text)
    assert "".join(piece for *_, piece in found) == "".join(f"{n} {name}" for n, name in enumerate(names, 1))
    assert all(x + text_width(piece) <= width for x, _, piece in found)
    assert all(300 < y < 300 + height for _, y, _ in found)
    assert apart(found)


@given(ys=st.lists(st.floats(10, 262), min_size=1, max_size=60))
def test_numbers_in_a_margin_are_apart_however_many_there_are(ys):
    labels = [Label(str(n), "a", "#000", 0, y) for n, y in enumerate(ys)]
    found = words(in_margin(labels, 300, 10, 262))
    assert apart(found)
    assert [y for _, y, _ in found] == sorted(y for _, y, _ in found)
    heights = {text: y for _, y, text in found}
    for (number, y), (other, later) in pairwise(sorted(enumerate(ys), key=lambda pair: pair[1])):
        assert y == later or heights[str(number)] <= heights[str(other)]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=20, unique=True))
def test_labels_of_points_are_apart_where_points_are(places):
    within = Box(0, 0, 480, 300)
    points = [(30.0 + 55 * x, 25.0 + 50 * y) for x, y in places]
    labels = [Label("12", "a", "#000", x, y) for x, y in points]
    found = beside_points(labels, points, [], within)
    assert not crowded(found, points)
    for (x, y), place in zip(points, found, strict=True):
        assert abs((place.left + place.right) / 2 - x) < 30
        assert abs((place.top + place.bottom) / 2 - y) < 30
    assert crowded([Box(0, 0, 9, 9)] * 2, [])
    assert crowded([Box(0, 0, 9, 9)], [(5, 5)])
