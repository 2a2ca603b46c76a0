"""The checks of launch/test.sh say the same whatever else lies in the working folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("benchmarks", "docs", "ds_configs", "launch", "tests", "tokenization", "trainer")
BADLY_WRITTEN = "import os, sys\nfrom trainer import cli\nimport runs\nx:int = 'a'\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The project's files beside what its users make: outputs, models, scripts of their own."""
    root = tmp_path_factory.mktemp("clone") / "rewarm"
    root.mkdir()
    for name in OURS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in (".md", ".py", ".toml", ".lock"):
            shutil.copy(path, root / path.name)
    # folders with the names of packages, and of modules in tests/
    for name in ("runs", "data", "models", "tokenizers", "cluster", "numpy", "datasets", "trainer-old"):
        (root / name / "quickstart").mkdir(parents=True)
        (root / name / "quickstart" / "notes.txt").write_text("teh recieve\n")  # codespell:ignore teh,recieve
        (root / name / "quickstart" / "make.py").write_text(BADLY_WRITTEN)
    for name in ("scratch.py", "crashes.py", "tokenization_old.py"):
        (root / name).write_text(BADLY_WRITTEN)
    return root


def checks() -> list[str]:
    """Every check of test.sh, as a line of bash."""
    return re.findall(r"^check (.+)$", (ROOT / "launch" / "test.sh").read_text(), re.MULTILINE)


def test_all_checks_are_tried_here():
    assert {line.split()[0] for line in checks()} >= {"ruff", "mypy", "lint-imports", "codespell"}


@pytest.mark.parametrize("line", [pytest.param(line, marks=pytest.mark.slow) for line in checks()])
def test_a_check_sees_only_the_projects_files(folder, line):
    named = re.search(r"^code=\(.*\)$", (ROOT / "launch" / "test.sh").read_text(), re.MULTILINE)
    assert named
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-c", f"{named[0]}\n{line}"],
        cwd=folder,
        env=environment | {"PATH": tools},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_as_an_editor_runs_it_sees_only_the_projects_files(folder):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
