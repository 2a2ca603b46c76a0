"""What a power cut leaves in the records stops neither the run nor its export, and is said."""

import json

import pytest

from tests.helpers import runs
from trainer.cli.main import main

pytestmark = pytest.mark.slow


def test_torn_lines_of_both_records_stop_neither_resume_nor_export(data, tmp_path, capsys):
    run = tmp_path / "run"
    recipe = runs.write(runs.recipe(data, run), tmp_path / "r.yaml")
    begun = runs.launch(recipe, 1, f"stop_after={6 * 256}")
    assert begun.returncode == 0, begun.stderr[-2000:]
    assert (
        "stop_after 1,536 ended the run at step 6, 1,536 of 3,072 tokens; raise it to train on"
        in begun.stderr
    )

    metrics, lineage = run / "metrics.jsonl", run / "lineage.jsonl"
    first, second, *rest = metrics.read_text().splitlines(keepends=True)
    torn = "".join([first, second[:40] + "\n", *rest])
    metrics.write_text(torn + '{"attempt": 1, "time": 17')
    lineage.write_text(lineage.read_text()[:60] + "\n" + lineage.read_text() + '{"time": 1')
    assert main(["export", str(run), "--out", str(tmp_path / "half")]) == 0
    said = capsys.readouterr().err
    assert f"{metrics}: passed over 1 damaged line(s)" in said
    assert f"{lineage}: passed over 1 damaged line(s) of 2: 1" in said

    again = runs.launch(recipe, 1)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count(f"{metrics}: passed over") == 1
    assert again.stderr.count(f"{metrics}: removed its last line") == 1
    assert again.stderr.count(f"{lineage}: removed its last line") == 1
    assert "stop_after" not in again.stderr
    assert metrics.read_text().startswith(torn), "nothing that was recorded is lost"
    assert [record["step"] for record in runs.trace(run)] == list(range(1, 13))
    assert [json.loads(line)["kind"] for line in lineage.read_text().splitlines()[1:]] == ["start", "restore"]
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "whole")]) == 0
