"""Tasks in the report: a row and a picture of each number, and its standard error."""

from tests.unit.report.test_sets import run
from trainer.metrics import names
from trainer.report.page import write_report
from trainer.report.runs import gather_runs
from trainer.report.tasks import task_rows

ACC, STDERR = "tasks/arc_zh/acc", "tasks/arc_zh/acc_stderr"
STRICT = "tasks/gsm/exact_match/strict"


def test_each_number_has_a_row_from_the_base_to_now_and_a_picture(tmp_path):
    first = run(tmp_path / "a", {ACC: 0.25, STDERR: 0.03, names.LR: 1.0}, {ACC: 0.5, STDERR: 0.025})
    other = run(tmp_path / "b", {ACC: 0.25, STRICT: 26605497.5}, {names.LR: 1.0})
    assert list(task_rows(gather_runs([first, other]))) == [
        ("a", "arc_zh", "acc", "0.2500", "0.5000", "±0.0250"),
        ("b", "arc_zh", "acc", "0.2500", "0.2500", "–"),
        ("b", "gsm", "exact_match/strict", "2.6605e+07", "2.6605e+07", "–"),
    ]
    printed = write_report([first, other], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "±0.0250" in printed
    assert "<h2>Tasks</h2>" in page
    assert page.count("arc_zh acc over tokens") == 1
    assert "gsm exact_match/strict over tokens" not in page  # a single point is not a curve


def test_an_average_has_a_row_and_a_picture_behind_those_of_the_weights(tmp_path):
    both = {names.of_average(ACC): 0.5, names.of_average(STDERR): 0.04}
    steps = ({ACC: 0.25}, {ACC: 0.3, STDERR: 0.05, **both}, {ACC: 0.375, STDERR: 0.05, **both})
    folder = run(tmp_path / "a", *steps)
    assert list(task_rows(gather_runs([folder]))) == [
        ("a", "arc_zh", "acc", "0.2500", "0.3750", "±0.0500"),
        ("a", "arc_zh", "acc, averaged weights", "0.2500", "0.5000", "±0.0400"),
    ]
    write_report([folder], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("arc_zh acc over tokens") < page.index("arc_zh acc, averaged weights over tokens")


def test_a_run_without_tasks_has_no_such_section(tmp_path):
    folder = run(tmp_path / "a", {names.UPSTREAM: 2.0}, {names.UPSTREAM: 2.5})
    printed = write_report([folder], tmp_path / "report.html")
    assert "task" not in printed
    assert "<h2>Tasks</h2>" not in (tmp_path / "report.html").read_text(encoding="utf-8")
