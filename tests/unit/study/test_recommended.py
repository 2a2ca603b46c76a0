"""`rewarm study recommend` and `laws` on the directories of studies: what is printed, written and refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import studies
from trainer.cli.main import main
from trainer.recipe.load import load_recipe
from trainer.report import document
from trainer.study.laws import DYNAMICS_LAW, Observations, annealing_areas
from trainer.study.observed import fit_all, fit_forgetting, studied_arms
from trainer.study.results import Planned, StudyRecord, write_record


@pytest.fixture(autouse=True)
def fewer_fits(monkeypatch):
    """The bootstrap takes most of the time, and what is told of it needs few fits."""
    for name, fit in (("recommend.fit_forgetting", fit_forgetting), ("observed.fit_all", fit_all)):
        monkeypatch.setattr(f"trainer.study.{name}", partial(fit, bootstraps=60))


SHARES = ("0", "1", "5", "10", "25", "50")
WHEN = np.array([0.25, 0.5, 0.75, 1.0])


def forgotten(replay: float, when: np.ndarray) -> np.ndarray:
    return 0.8 * when**0.5 / (1 + 400 * replay) ** 0.7


def write_replay(out: Path, **changes) -> Path:
    """A study of the replay whose arms forget by the law."""
    planned = []
    for share in SHARES:
        replay = int(share) / 100
        words = (f"phases.0.mixture={{replay_ratio: {share}/100}}", f"name=quick-replay-{share}")
        wiggle = 1e-3 * np.array([1, -1, 1, -1]) * (-1) ** int(share)
        studies.write_run(
            out / f"replay-{share}",
            [2.0, *(2.0 + forgotten(replay, WHEN) + wiggle).tolist()],
            [3.0, *(3.0 - WHEN**0.3 + 0.1 * replay).tolist()],
            overrides=words,
            **changes,
        )
        planned.append(Planned(f"replay-{share}", f"replay-{share}", 0))
    write_record(out, StudyRecord("replay", "recipe.yaml", tuple(planned)))
    return out


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    return write_replay(tmp_path_factory.mktemp("studies") / "replay")


def answered(capsys, *words, status=0):
    assert main(["study", *map(str, words)]) == status
    return capsys.readouterr()


def test_the_answer_names_the_arms_and_the_recipe_holds_it(replay, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    words = ["recommend", replay, "--forgetting", "0.04", "--tokens", "409600"]
    told = json.loads(answered(capsys, *words, "--write", recipe, "--json").out)
    low, high = told["replay"]["interval"]
    assert 0.1 < low <= told["replay"]["value"] <= high < 0.5
    assert len(told["replay"]["arms"]) == len(SHARES)
    assert told["law"]["law"] == "forgetting"
    assert len(told["law"]["measured"]) == len(told["law"]["predicted"]) == 24
    assert "extrapolated to 2.0 times the tokens of the largest arm" in told["notes"]
    assert any("fewer than 15M weights" in note for note in told["notes"])
    written = load_recipe(recipe)
    (mixture,) = written.phases[-1].mixture
    assert high <= mixture.replay_ratio < high + 0.001
    assert (written.phases[-1].tokens, written.name, written.run_dir) == (409600, "quick-recommended", None)
    assert "# replay   " in recipe.read_text()
    before = recipe.read_text()
    assert "--write: " in answered(capsys, *words, "--write", recipe, status=2).err
    assert recipe.read_text() == before


def test_a_refusal_writes_nothing_and_ends_with_2(replay, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    words = ["recommend", replay, "--forgetting", "0.04", "--write", recipe]
    told = answered(capsys, *words, "--tokens", "20e9", "--parameters", "7e9", status=2).out
    assert "beyond 10 times; the arm that would help most: 2,000,000,000 tokens" in told
    unmet = answered(capsys, *words[:3], "0.001", "--write", recipe, status=2).err
    assert "is not written: no share up to 50% kept forgetting at 0.001" in unmet
    assert (
        "give the --out of `rewarm study`"
        in answered(capsys, "recommend", tmp_path, *words[2:], status=2).err
    )
    assert "add --write RECIPE" in answered(capsys, *words[:4], "--for-budget", status=2).err
    assert not recipe.exists()


def test_several_studies_answer_together(replay, capsys):
    planned = []
    for rate, better in (("1.5e-3", 0.2), ("3e-3", 0.0), ("6e-3", -0.2)):
        words = ("phases.0.mixture={replay_ratio: 50/100}", f"phases.0.schedule.max_lr={rate}")
        ends = [2.01, 2.02, 2.02, 2.02] if rate != "6e-3" else [2.1, 2.1, 2.1, 2.1]
        down = [3.0, *(2.5 + better - 0.1 * WHEN).tolist()]
        studies.write_run(replay.parent / "max_lr" / rate, [2.0, *ends], down, overrides=words)
        planned.append(Planned(rate, rate, 0))
    write_record(replay.parent / "max_lr", StudyRecord("max_lr", "recipe.yaml", tuple(planned)))
    both = json.loads(answered(capsys, "recommend", replay.parent, "--forgetting", "0.04", "--json").out)
    assert both["max_lr"]["value"] == 3e-3
    assert both["replay"]["value"] is not None


def test_laws_print_and_draw_parameters_residuals_and_a_back_test(replay, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(document, "BROWSERS", ())
    told = answered(capsys, "laws", replay, "--out", tmp_path / "laws").out
    drawn = {path.name: path.read_text() for path in (tmp_path / "laws").iterdir()}
    assert set(drawn) == {"forgetting-upstream.svg", "D-CPT-upstream.svg", "D-CPT-downstream.svg"}
    assert all(">half " in picture for picture in drawn.values())
    refused = answered(capsys, "laws", replay, "--out", tmp_path / "laws", status=2).err
    assert "exists and is not empty" in refused
    assert "L = L0 + A·D^b/((1 + B·p)·N)^a + E" in told
    assert "back-test, the second half of the tokens: mean relative error" in told
    assert "held: what it stands for did not vary" in told  # one size


def test_a_budget_gets_the_gain_that_the_arms_show(replay, tmp_path, capsys):
    words = ["recommend", replay, "--forgetting", "0.04", "--for-budget", "--write", tmp_path / "r.yaml"]
    told = json.loads(answered(capsys, *words, "--json").out)
    (mixture,) = load_recipe(tmp_path / "r.yaml").phases[-1].mixture
    assert mixture.forgetting_budget == 0.04
    assert mixture.replay_gain == pytest.approx(told["gain"], abs=1e-3)


def test_the_dynamics_are_fitted_to_the_rates_that_runs_recorded(tmp_path):
    values = {"L0": 1.1, "A": 0.3, "S0": 0.8, "alpha": 0.5, "C": 0.15, "B": 0.8, "K": 12.0, "beta": 0.4}
    shapes = {"one": np.full(100, 1.0), "two": np.linspace(1, 0.1, 100), "three": np.linspace(2, 0.2, 100)}
    areas = {name: annealing_areas(1e-3 * shape) for name, shape in shapes.items()}
    largest = max(forward[-1] for forward, _ in areas.values())
    planned = []
    for name, (forward, annealed) in areas.items():
        steps = np.arange(4, 100, 5)
        inputs = {"forward_area": forward[steps] / largest, "annealing_area": annealed[steps] / largest}
        loss = DYNAMICS_LAW.predict(values, Observations(steps * 0.0, inputs, steps, {}))
        rate = 1e-3 * shapes[name].max()
        words = (f"phases.0.schedule={{kind: linear, max_lr: {rate}, warmup: {len(planned)}%}}",)
        run = tmp_path / name
        studies.write_run(run, [2.0, 2.0, 2.0], [2.0, 2.0, 2.0], overrides=words)
        lines = (run / "metrics.jsonl").read_text().splitlines()[:2]
        for step in range(1, 101):
            record = {"attempt": 1, "time": 2.0, "step": step, "tokens": step * studies.STEP}
            record["lr"] = float(1e-3 * shapes[name][step - 1])
            if step - 1 in steps:
                bits = float(loss[np.flatnonzero(steps == step - 1)[0]])
                record |= {"eval/upstream/bits_per_byte": bits, "eval/downstream/bits_per_byte": bits}
            lines.append(json.dumps(record))
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        planned.append(Planned(name, name, 0))
    write_record(tmp_path, StudyRecord("schedule", "recipe.yaml", tuple(planned)))
    found = fit_all(studied_arms([tmp_path]), bootstraps=0)
    assert [(one.fit.law.name, one.stream) for one in found] == [
        ("learning dynamics", "upstream"),
        ("learning dynamics", "downstream"),
    ]
    assert found[0].fit.relative_error < 1e-3
