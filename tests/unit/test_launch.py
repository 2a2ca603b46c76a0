"""setup.sh and test.sh on machines that lack something; stand-ins for the tools note how they are called."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone of the repository as far as the two scripts look at it."""
    root = tmp_path / "clone"
    (root / "launch").mkdir(parents=True)
    for script in ("setup.sh", "test.sh"):
        shutil.copy(ROOT / "launch" / script, root / "launch" / script)
    (root / "requirements.lock").write_text("numpy==2.4.6\n")
    (root / "setup.py").write_text("")
    return root


def tool(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def launch(root: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(root / "launch" / script), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(root), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess) -> str:
    """The one line on standard error."""
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def stamp(root: Path) -> str:
    return hashlib.sha256(
        (root / "requirements.lock").read_bytes() + (root / "setup.py").read_bytes()
    ).hexdigest()


def environment(root: Path) -> Path:
    """A finished .venv whose tools note how they are called, in which environment."""
    tools = root / ".venv" / "bin"
    tool(tools / "python", "exit 0")
    for name in ("ruff", "mypy", "lint-imports", "codespell", "pytest"):
        tool(
            tools / name,
            f'echo "{name} $*" >>"{root}/calls"; env >"{root}/{name}.env"; [[ " $FAILS " != *" {name} "* ]]',
        )
    (root / ".venv" / "rewarm.stamp").write_text(stamp(root))
    return tools


# ----------------------------------------------------------------------------------------------- setup.sh


def test_no_python_is_one_line_with_the_way_to_name_one(clone):
    line = complaint(launch(clone, "setup.sh", PYTHON="/nowhere/python3"))
    assert "no Python of at least 3.11 found (looked for /nowhere/python3)" in line
    assert "PYTHON=" in line


def test_an_old_python_is_none(clone, tmp_path):
    old = tool(tmp_path / "old", "exit 1")  # answers no to "at least 3.11?"
    assert "no Python of at least 3.11" in complaint(launch(clone, "setup.sh", PYTHON=str(old)))


def test_a_python_without_venv_is_told_how_to_get_it(clone, tmp_path):
    bare = tool(tmp_path / "bare", '[[ $2 != *"import ensurepip, venv"* ]]')
    assert "apt-get install python3-venv" in complaint(launch(clone, "setup.sh", PYTHON=str(bare)))


def test_a_full_disk_is_noticed_before_anything_is_downloaded(clone, tmp_path):
    tool(tmp_path / "bin" / "df", 'printf "Filesystem 1024-blocks Used Available\\nx 9 9 1048576 9%% /\\n"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert "has 1 GiB free and the environment needs" in complaint(launch(clone, "setup.sh", PATH=path))
    assert not (clone / ".venv").exists()


PYTHON = """
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip --version") [[ -d $(dirname "$0")/../bin && $0 == */.venv/bin/python ]] ;;
    "-m pip install "*) echo "${@: -1}" >>"$HOME/installed"; [[ "$*" != *"$FAILS"* ]] ;;
    *"torch.version.cuda"*) ;;
esac
"""


def test_torch_goes_first_and_a_second_run_does_nothing(clone, tmp_path):
    python = str(tool(tmp_path / "python3", PYTHON))
    done = launch(clone, "setup.sh", PYTHON=python, FAILS="nothing")
    assert done.returncode == 0, done.stderr
    installed = [str(clone / "requirements.lock"), str(clone)]
    assert (clone / "installed").read_text().splitlines() == ["torch==2.13.0", *installed]
    assert "ready: torch 2.13.0 for the CPU" in done.stdout

    again = launch(clone, "setup.sh", PYTHON="/nowhere/python3")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    (clone / "requirements.lock").write_text("numpy==2.4.7\n")
    launch(clone, "setup.sh", PYTHON=python, FAILS="nothing")
    assert len((clone / "installed").read_text().splitlines()) == 6


def test_a_failed_download_leaves_no_environment_that_looks_ready(clone, tmp_path):
    python = str(tool(tmp_path / "python3", PYTHON))
    line = complaint(launch(clone, "setup.sh", PYTHON=python, FAILS="requirements.lock"))
    assert "requirements.lock failed" in line
    assert "run this again" in line
    assert not (clone / ".venv" / "rewarm.stamp").exists()
    assert launch(clone, "setup.sh", PYTHON=python, FAILS="nothing").returncode == 0


def test_another_index_for_torch_is_for_torch_alone(clone, tmp_path):
    python = PYTHON.replace('"${@: -1}"', '"$*"')
    launch(
        clone,
        "setup.sh",
        PYTHON=str(tool(tmp_path / "python3", python)),
        FAILS="nothing",
        REWARM_TORCH_INDEX="file:///wheels",
    )
    torch, *others = (clone / "installed").read_text().splitlines()
    assert "--extra-index-url file:///wheels torch==2.13.0" in torch
    assert all("--extra-index-url" not in line for line in others)


# ------------------------------------------------------------------------------------------------ test.sh


def test_every_check_runs_and_arguments_reach_pytest(clone):
    environment(clone)
    done = launch(clone, "test.sh", "--fast", "-k", "mixer")
    assert done.returncode == 0, done.stderr
    assert (clone / "calls").read_text().splitlines() == [
        "ruff check benchmarks launch tests tokenization trainer setup.py",
        "ruff format --check benchmarks launch tests tokenization trainer setup.py",
        "mypy ",
        "lint-imports --no-cache",
        "codespell benchmarks launch tests tokenization trainer setup.py docs README.md README.zh-CN.md"
        " CHANGELOG.md CONTRIBUTING.md",
        "pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 -m not slow -k mixer",
    ]


def test_coverage_is_measured_where_it_is_asked_for(clone):
    environment(clone)
    assert launch(clone, "test.sh", "--coverage").returncode == 0
    *_, tests = (clone / "calls").read_text().splitlines()
    assert tests.endswith("--cov --cov-report=term:skip-covered")


@pytest.mark.parametrize("broken", ["ruff", "mypy", "lint-imports", "codespell", "pytest"])
def test_any_failure_fails_the_whole_and_hides_no_other_check(clone, broken):
    environment(clone)
    assert launch(clone, "test.sh", FAILS=broken).returncode != 0
    assert len((clone / "calls").read_text().splitlines()) == 6


def test_what_a_users_shell_carries_does_not_reach_the_tests(clone):
    environment(clone)
    carried = {
        "RANK": "3",
        "SLURM_JOB_ID": "1",
        "DS_ACCELERATOR": "cuda",
        "PYTHONPATH": "/x",
        "PYTEST_ADDOPTS": "-x",
    }
    assert launch(clone, "test.sh", **carried, FAILS="", KEPT="yes").returncode == 0
    seen = dict(line.split("=", 1) for line in (clone / "pytest.env").read_text().splitlines() if "=" in line)
    assert not {"RANK", "SLURM_JOB_ID", "PYTHONPATH", "PYTEST_ADDOPTS"} & set(seen)
    assert (seen["DS_ACCELERATOR"], seen["OMP_NUM_THREADS"], seen["KEPT"]) == ("cpu", "1", "yes")


def test_help_tells_the_options(clone):
    done = launch(clone, "test.sh", "--help")
    assert done.returncode == 0
    assert "--fast      leaves out" in done.stdout
    assert "--coverage  tells" in done.stdout


# ------------------------------------------------------------------------------------------ quickstart.sh


@pytest.fixture
def quickstart(clone, tmp_path):
    """Calls quickstart.sh where everything is stood in for, as far as its first training."""
    shutil.copy(ROOT / "launch" / "quickstart.sh", clone / "launch" / "quickstart.sh")
    tool(clone / "launch" / "setup.sh", "exit 0")
    for name in ("python", "rewarm"):
        tool(clone / ".venv" / "bin" / name, "exit 0")
    tool(clone / ".venv" / "bin" / "deepspeed", 'echo "ranks: $4, on ${DS_ACCELERATOR:-gpu}" >&2; exit 1')

    def call(gpus: int, *arguments: str, **environment: str) -> str:
        listed = "; ".join(f'echo "GPU {number}: H200 (UUID: x)"' for number in range(gpus)) or "exit 9"
        tool(tmp_path / "bin" / "nvidia-smi", listed)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = launch(
            clone, "quickstart.sh", "--out", str(tmp_path / "o"), *arguments, PATH=path, **environment
        )
        return complaint(done)

    return call


@pytest.mark.parametrize(
    ("gpus", "environment", "said"),
    [
        (0, {}, "ranks: 2, on cpu"),
        (1, {}, "ranks: 1, on gpu"),
        (4, {}, "ranks: 2, on gpu"),
        (4, {"CUDA_VISIBLE_DEVICES": "3"}, "ranks: 1, on gpu"),
        (4, {"CUDA_VISIBLE_DEVICES": ""}, "ranks: 2, on cpu"),
        (1, {"DS_ACCELERATOR": "cpu"}, "ranks: 2, on cpu"),
    ],
)
def test_the_quickstart_takes_two_ranks_where_it_can(quickstart, gpus, environment, said):
    assert quickstart(gpus, **environment) == f"{said}\n"


@pytest.mark.parametrize(
    ("gpus", "nproc", "said"),
    [
        (0, "16", "--nproc 16: give 1, 2, 4 or 8"),  # a step has 8 samples
        (2, "4", "--nproc 4: there are 2 GPUs; give at most that many ranks"),
    ],
)
def test_ranks_that_cannot_be_are_refused_at_once(quickstart, tmp_path, gpus, nproc, said):
    assert quickstart(gpus, "--nproc", nproc) == f"quickstart: {said}\n"
    assert not (tmp_path / "o").exists()
