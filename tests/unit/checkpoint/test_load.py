"""A checkpoint and a model have the same weights, by name and shape, or it is not loaded."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.load import different_weights

WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([(2, 3), (3, 2), (6,)]))


@given(saved=WEIGHTS, model=WEIGHTS)
def test_only_equal_sets_of_names_and_shapes_are_loaded(saved, model):
    told = different_weights(saved, model)
    assert (told is None) == (saved == model)
    if told is not None:
        assert "\n" not in told
        for names, word in ((saved.keys() - model.keys(), "holds"), (model.keys() - saved.keys(), "lacks")):
            assert not names or f"{word} {len(names)} weights" in told
