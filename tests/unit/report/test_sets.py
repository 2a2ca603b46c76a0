"""Validation sets in the report: a tree of roles, sets and classes of bytes."""

import io

from trainer.metrics import names
from trainer.metrics.log import Metrics
from trainer.recipe.schema import Logging
from trainer.report.page import write_report
from trainer.report.runs import gather_runs
from trainer.report.sets import set_rows

WIKI = "upstream/en-wiki"


def run(directory, *records):
    """A run that has recorded these metrics, a step each."""
    metrics = Metrics(
        directory, Logging(tensorboard=False), rank=0, name="x", total_tokens=1, stream=io.StringIO()
    )
    for step, values in enumerate(records):
        metrics.log(step, step * 100, values)
    metrics.close()
    return directory


def scores(upstream, wiki, forgotten=None, cjk=None):
    found = {names.UPSTREAM: upstream, names.stream_bits_per_byte(WIKI): wiki}
    if forgotten is not None:
        found |= {names.FORGETTING: forgotten, names.stream_forgetting(WIKI): 2 * forgotten}
    return found | ({} if cjk is None else {names.stream_class_bits_per_byte(WIKI, "cjk"): cjk})


def test_sets_stand_below_their_roles_and_classes_below_their_sets(tmp_path):
    folder = run(tmp_path / "a", scores(2.0, 1.0, 0.0, 4.0), scores(2.25, 1.5, 0.25, 3.0))
    assert list(set_rows(gather_runs([folder]))) == [
        ("a", "upstream", "2.0000 → 2.2500", "+0.2500"),
        ("a", WIKI, "1.0000 → 1.5000", "+0.5000"),
        ("a", f"{WIKI}: cjk", "4.0000 → 3.0000", "–"),
    ]
    printed = write_report([folder], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{WIKI}: cjk" in printed
    assert "Validation sets" in page
    assert "1.0000 → 1.5000" in page


def test_a_run_without_named_sets_prints_the_table_that_it_always_did(tmp_path):
    folder = run(tmp_path / "a", {names.UPSTREAM: 2.0}, {names.UPSTREAM: 2.5})
    printed = write_report([folder], tmp_path / "report.html")
    assert "\n\n" not in printed
    assert "2.0000 → 2.5000" in printed
