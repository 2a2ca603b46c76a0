"""A study that is killed, in every state that it can be in: the same call trains what is left."""

import json
from pathlib import Path

import pytest

from tests.helpers import runs, studies
from tests.helpers.studies import make_trunk
from trainer.metrics.heartbeat import write_status
from trainer.study import series
from trainer.study.results import Planned
from trainer.study.series import ArmRun, Request, train_arms
from trainer.study.trunk import Trunk


class Machine:
    """In place of training: what is started, and how each run ends; one without a status is finished."""

    def __init__(self, out: Path) -> None:
        self.out, self.started, self.statuses = out, [], {}

    def run_together(self, programs, count, at_once, *, started, ended, beat):
        found = {}
        for name in programs:
            self.started.append(name)
            started(name)
            run = self.out / name
            if not run.exists():
                make_trunk(run)
            found[name] = self.statuses.get(name, 0)
            state = "finished" if found[name] == 0 else "failed" if found[name] < 75 else "stopped"
            write_status(run, {"state": state, "time": 1.0, "metrics": {}})
            if not ended(name, found[name]):
                break
        return found

    def since(self) -> list[str]:
        """What was started since the last question."""
        started, self.started = self.started, []
        return started


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path / "out")
    monkeypatch.setattr(series, "run_together", machine.run_together)
    return machine


def study(out: Path, finished: tuple[str, ...] = ()) -> tuple[Request, list[ArmRun]]:
    """Three arms: two go on from a trunk, and one begins by itself."""
    out.mkdir(exist_ok=True)
    recipe = runs.write(
        runs.tree(Path("data"), Path("run"), "ds_configs/zero2.json", phases=2), out / "r.yaml"
    )
    arms = []
    for name, phase in (("a", 1), ("b", 1), ("scratch", 0)):
        words = (f"name=run-{name}", f"run_dir={out / name}")
        trunk = Trunk(out / "trunk") if phase else None
        arms.append(ArmRun(Planned(name, name, 0, phase=phase), out / name, words, name in finished, trunk))
    return Request("replay", recipe, out), arms


def test_what_is_shared_comes_first_and_once(machine):
    assert train_arms(*study(machine.out)) == 0
    assert machine.since() == ["trunk", "a", "b", "scratch"]
    trunk = json.loads((machine.out / "a" / "last_committed.json").read_text())
    assert trunk == {"step": 8}
    assert train_arms(*study(machine.out, ("a", "b", "scratch"))) == 0
    assert machine.since() == []


def test_killed_in_the_trunk(machine):
    machine.statuses = {"trunk": 75}
    assert train_arms(*study(machine.out)) == 75
    assert machine.since() == ["trunk"]
    assert not (machine.out / "a").exists()
    machine.statuses = {}
    assert train_arms(*study(machine.out)) == 0
    assert machine.since() == ["trunk", "a", "b", "scratch"]


def test_killed_between_the_trunk_and_the_arms(machine):
    machine.statuses = {"a": 75}
    assert train_arms(*study(machine.out)) == 75
    assert machine.since() == ["trunk", "a"]
    (machine.out / "a" / "mine").write_text("what the arm did by itself")
    machine.statuses = {}
    assert train_arms(*study(machine.out)) == 0
    assert machine.since() == ["a", "b", "scratch"]
    assert (machine.out / "a" / "mine").exists()


def test_killed_in_the_last_arm(machine):
    machine.statuses = {"scratch": 130}
    assert train_arms(*study(machine.out)) == 130
    machine.since()
    machine.statuses = {}
    assert train_arms(*study(machine.out, ("a", "b"))) == 0
    assert machine.since() == ["scratch"]


def test_a_failed_arm_leaves_the_others_to_go_on_and_a_diverged_one_is_a_result(machine, log_lines):
    machine.statuses = {"a": 2}
    assert train_arms(*study(machine.out)) == 2
    assert machine.since() == ["trunk", "a", "b", "scratch"]
    assert any(line.startswith("a: ended with status 2; the same command") for line in log_lines)
    lost = machine.out / "scratch"
    for path in sorted(lost.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    lost.rmdir()
    studies.write_run(lost, (2.0, float("nan")), (3.0, float("nan")))
    machine.statuses = {"scratch": 2}
    assert train_arms(*study(machine.out, ("a", "b"))) == 0
    assert any("scratch: diverged; that is its result" in line for line in log_lines)
