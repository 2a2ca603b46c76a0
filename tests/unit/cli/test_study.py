"""`rewarm study` on the command line: options that fit the study, and the answer as data."""

import json
import shlex
from pathlib import Path

import pytest

from tests.helpers import studies
from trainer.cli.main import main
from trainer.study import series
from trainer.study.results import Planned
from trainer.study.series import ArmRun

RECIPE = str(studies.QUICKSTART)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["replay", "--vary", "seed=1,2"], "--vary: has no effect on the study replay"),
        (["grid"], "--vary: is missing"),
        (["grid", "--vary", "seed=1"], "--vary: 'seed=1' is not FIELD=VALUE,VALUE"),
        (["replay", "--from", "a@1"], "--from: has no effect on the study replay"),
        (["replay", "--unextended", RECIPE], "--unextended: has no effect on the study replay"),
        (["branch", "--from", "here"], "--from: 'here' is not RUN@TOKENS"),
        (["branch", "--from", "nowhere@1e9"], "--from: 'nowhere' is not a run directory"),
        (["branch", "--seeds", "2"], "--seeds: has no effect on the study branch, whose trunk is one run"),
        (["replay", "--sizes", "tiny"], "--sizes: 'tiny' cannot be made from a base"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(words, why, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *rest = words
    assert main(["study", name, "--recipe", RECIPE, "--out", "out", "--nproc", "1", *rest]) == 2
    assert why in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_study_that_is_not_known_is_refused_with_those_that_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "replya", "--recipe", RECIPE, "--out", "out"])
    assert ended.value.code == 2
    assert "invalid choice: 'replya' (choose from 'replay', 'max_lr'" in capsys.readouterr().err


def test_a_recipe_is_asked_for(capsys):
    assert main(["study", "replay", "--out", "out", "--nproc", "1"]) == 2
    assert "--recipe: is missing" in capsys.readouterr().err


def test_the_answer_has_the_verdicts_and_a_failed_arm_s_status(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    ends = {f"replay-{share}": [(2.5 - share / 100, 2.0)] for share in (0, 1, 5, 10, 25, 50)}
    studies.write_study(out, "replay", ends)
    arms = [ArmRun(Planned(name, name, 0), out / name, ("seed=0",), True) for name in ends]
    monkeypatch.setattr(series, "plan_arms", lambda request: arms)
    monkeypatch.setattr(series, "train_arms", lambda request, arms, at_once: 1)
    assert main(["study", "replay", "--recipe", RECIPE, "--out", str(out), "--nproc", "1", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert {one["outcome"] for one in answer["verdicts"]} == {"not decided"}
    assert len(answer["verdicts"]) == 3
    assert answer["report"] == str(out / "report.html")
    monkeypatch.setattr(series, "train_arms", lambda request, arms, at_once: 75)
    assert main(["study", "replay", "--recipe", RECIPE, "--out", str(out), "--nproc", "1"]) == 75
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("words", "ranks"), [(["--nproc", "2"], 2), ([], 8)])
def test_the_line_for_a_batch_system_names_a_script_that_is_there(
    tmp_path, capsys, monkeypatch, words, ranks
):
    out = tmp_path / "a study"
    arms = [ArmRun(Planned(name, name, 0), out / name, (f"name={name}",), False) for name in ("a", "b")]
    monkeypatch.setattr(series, "plan_arms", lambda request: arms)
    given = ["study", "replay", "--recipe", RECIPE, "--out", str(out), "--arms-only", *words]
    assert main(given) == 0
    listed, submit = capsys.readouterr().out.splitlines()
    assert listed == f"{out / 'arms.txt'}: 2 arms"
    command, script = shlex.split(submit)
    assert command == "sbatch"
    text = Path(script).read_text()
    assert f"#SBATCH --array=1-2\n#SBATCH --nodes=1\n#SBATCH --ntasks-per-node={ranks}\n" in text
    assert f"set -- {RECIPE} {shlex.quote(str(out / 'arms.txt'))}\n" in text
    assert "launch/slurm" not in text
    assert main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"] == script
