"""No source's metric has the name of another metric, whatever the source is called."""

from hypothesis import example, given
from hypothesis import strategies as st

from trainer.metrics import names

FIXED = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}


@given(st.text(min_size=1), st.text(min_size=1))
@example("train", "skipped")
def test_sources_have_a_namespace_of_their_own(one, other):
    made = [names.source_loss(one), names.source_tokens(one), names.source_epochs(one)]
    assert not FIXED & set(made)
    assert len(set(made)) == 3
    assert (names.source_loss(one) == names.source_loss(other)) == (one == other)


@given(st.sampled_from(sorted(FIXED)) | st.text(min_size=1).map(names.source_loss))
def test_a_current_name_stays(name):
    assert names.current_name(name) == name


def test_older_names_of_sources_are_translated():
    assert names.current_name("loss/zh") == "loss/source/zh"
    assert names.current_name("tokens/zh-web") == "tokens/source/zh-web"
    assert names.current_name("epochs/train") == "epochs/source/train"
