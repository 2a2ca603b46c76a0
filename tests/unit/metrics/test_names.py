"""No source's metric has the name of another metric, whatever the source is called."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.metrics import names

FIXED = {
    value
    for name, value in vars(names).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str)
}


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


@pytest.mark.parametrize(
    ("task", "key", "name", "stderr"),
    [
        ("arc_zh", "acc,none", "tasks/arc_zh/acc", "tasks/arc_zh/acc_stderr"),
        ("gsm", "exact_match,strict", "tasks/gsm/exact_match/strict", "tasks/gsm/exact_match_stderr/strict"),
        ("a/b", "f1(x),none", "tasks/a_b/f1_x_", "tasks/a_b/f1_x__stderr"),
        ("arc_zh", "acc_stderr,none", "tasks/arc_zh/acc_stderr", None),
        ("gsm", "exact_match_stderr,strict", "tasks/gsm/exact_match_stderr/strict", None),
    ],
)
def test_a_number_on_a_task_and_its_standard_error_find_each_other(task, key, name, stderr):
    assert names.task_metric(task, key) == name
    assert names.is_task_metric(name)
    assert names.task_stderr(name) == stderr
    averaged = names.of_average(name)
    assert names.of_weights(averaged) == names.of_weights(name) == name
    assert names.is_task_metric(averaged)
    assert names.task_stderr(averaged) == (stderr and f"average/{stderr}")
    assert names.stream_of(name) is None


def test_other_metrics_are_not_of_tasks():
    assert not any(names.is_task_metric(name) or names.task_stderr(name) for name in FIXED)


def test_older_names_of_sources_are_translated():
    assert names.current_name("loss/zh") == "loss/source/zh"
    assert names.current_name("tokens/zh-web") == "tokens/source/zh-web"
    assert names.current_name("epochs/train") == "epochs/source/train"
