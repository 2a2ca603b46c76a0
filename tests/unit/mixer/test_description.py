"""What a checkpoint records of a mixture: read as older releases wrote it, whatever a source is called."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.mixer_recipes import mixture_of
from trainer.mixer.description import MixtureDescription, SegmentDescription, SourceDescription

OLD = {
    "mixer": 1,
    "seed": 7,
    "seq_len": 16,
    "mixture.0.from_sample": 0,
    "mixture.0.zh": "3/4",
    "mixture.0.en": "1/4",
    "mixture.1.from_sample": 40,
    "mixture.1.a.b": "1",
    "sources.zh.fingerprint": "hash-of-zh",
    "sources.zh.samples": 500,
    "sources.zh.place": 0,
    "sources.zh.order": "shuffled",
    "sources.en.fingerprint": "hash-of-en",
    "sources.en.samples": 300,
    "sources.en.place": 1,
    "sources.en.order": "blocks",
    "sources.en.block": 64,
    "sources.a.b.fingerprint": "hash-of-ab",
    "sources.a.b.samples": 90,
    "sources.a.b.place": 2,
    "sources.a.b.order": "sequential",
    "sources.a.b.offset": 5,
    "sources.gone.taken_before": 12,
    "sources.zh.taken_before": 30,
}
"""As every release so far has written it."""


def test_what_older_releases_wrote_is_read_and_written_again_to_the_byte():
    found = MixtureDescription.from_json(OLD)
    assert json.dumps(found.to_json()) == json.dumps(OLD)
    assert found.segments[1] == SegmentDescription(40, {"a.b": "1"})
    assert found.sources["en"] == SourceDescription("hash-of-en", 300, 1, "blocks", block=64)
    assert found.taken_before == {"gone": 12, "zh": 30}


def test_shares_are_means_over_the_segments_that_are_reached():
    found = MixtureDescription.from_json(OLD)
    assert found.shares(40) == {"zh": 0.75, "en": 0.25, "a.b": 0.0}
    assert found.shares(80) == {"zh": 0.375, "en": 0.125, "a.b": 0.5}


def test_a_phase_that_is_cut_forgets_what_it_does_not_reach():
    cut = MixtureDescription.from_json(OLD).truncated(40)
    assert len(cut.segments) == 1
    assert list(cut.sources) == ["zh", "en"]
    assert cut.taken_before == {"gone": 12, "zh": 30}


NAMES = [
    "from_sample",
    ".from_sample",
    "..from_sample",
    "train",
    "skipped",
    "taken_before",
    "a.samples",
    "0.zh",
]


@given(names=st.lists(st.sampled_from(NAMES) | st.text(min_size=1), min_size=1, max_size=6, unique=True))
def test_a_source_may_have_any_name(names):
    weights = {name: f"1/{len(names)}" for name in names}
    sources = {name: SourceDescription(f"hash {name}", 9, at, "shuffled") for at, name in enumerate(names)}
    segments = (SegmentDescription(0, weights), SegmentDescription(8, {names[0]: "1"}))
    whole = MixtureDescription(1, 0, 16, segments, sources, dict.fromkeys(names, 3))
    assert MixtureDescription.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("name", ["from_sample", "train", "skipped"])
def test_a_mixture_with_a_source_of_a_reserved_name_is_described(name):
    mixture = mixture_of({name: 90, "b": 90}, [f"{name}: 3/4, b: 1/4"], samples=[40])
    told = MixtureDescription.from_json(mixture.describe(0).to_json())
    assert told == mixture.describe(0)
    assert told.shares(40) == {name: 0.75, "b": 0.25}
    assert told.truncated(4).sources.keys() == {name, "b"}
