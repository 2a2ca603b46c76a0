"""The command that runs all studies: its options, and the script that writes its page."""

import subprocess
import sys

import pytest

from launch.quickstart import findings
from tests.helpers import runs, studies
from trainer.study.grids import STUDIES

SCRIPT = runs.ROOT / "launch" / "findings.sh"


def script(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--token", "1"], "unknown option --token"),
        (["--tokens", "1e6"], "--tokens 1e6: give a whole number"),
        (["--tokens", "100"], "--tokens 100: give a whole number of at least 10240"),
        (["--out", "a b"], "give a path without spaces"),
    ],
)
def test_a_wrong_option_is_one_line(words, why):
    done = script(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


def test_help_has_every_option_and_its_default():
    text, shown = SCRIPT.read_text(), script("--help").stdout
    for option in ("out", "page", "seeds", "tokens", "parallel"):
        default = next(line for line in text.splitlines() if line.startswith(f"{option}=")).partition("=")[2]
        (line,) = [line for line in shown.splitlines() if line.startswith(f"--{option} ")]
        assert f"(default: {default})" in line
    assert "Run it again" in shown
    named = text.partition("names=(")[2].partition(")")[0].split()
    assert set(named) <= set(STUDIES)


def test_the_page_is_written_or_an_error_is_one_line(tmp_path, monkeypatch, capsys):
    studies.write_study(tmp_path / "replay", "replay", {"replay-0": [(2.5, 2.0)]})
    page = tmp_path / "findings.md"
    monkeypatch.setattr(sys, "argv", ["findings.py", "--page", str(page), str(tmp_path / "replay")])
    assert findings.main() == 0
    assert "## replay: How much of the old data has to be replayed?" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["findings.py", "--page", str(page), str(tmp_path / "nothing")])
    assert findings.main() == 2
    assert "study.json: is missing" in capsys.readouterr().err
