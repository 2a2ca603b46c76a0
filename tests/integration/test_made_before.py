"""What commit 85773d8 made is read, resumed, exported, scored and drawn by the code of today."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import runs
from tests.recorded import jobs
from trainer.cli.main import main

CHECKPOINT = "run/checkpoints/step-00000008"
ANSWERS = json.loads((jobs.MADE / "answers.json").read_text(encoding="utf-8"))
"""What `rewarm` of that commit answered."""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A copy of everything, and the working directory that its relative paths start from."""
    copy = shutil.copytree(jobs.MADE, tmp_path / "made")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def one_thread():
    """One thread, as when the answers were recorded: sums of floats depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answer(capsys, *command):
    """What a command of `rewarm` answers."""
    assert main(list(command)) == 0
    return capsys.readouterr().out


def decision(capsys, *overrides, recipe="recipe.yaml"):
    """What `rewarm plan` says that starting the recipe with two ranks means."""
    told = json.loads(answer(capsys, "plan", recipe, *overrides, "--world-size", "2", "--json"))
    return told["decision"]


def lr_of_step(step):
    """The learning rate of a step in the run that was not interrupted."""
    _, records = jobs.recorded(jobs.SAME_AS_MADE)
    return records[step]["lr"]


@pytest.mark.parametrize("prefix", ANSWERS["inspect"])
def test_shards_are_read(made, capsys, prefix):
    found = json.loads(answer(capsys, "data", "inspect", prefix, "--json"))
    expected = ANSWERS["inspect"][prefix]
    assert {name: found.get(name) for name in expected} == expected


def test_a_plan_restores_the_run(made, capsys):
    found = decision(capsys)
    assert (found["kind"], found["step"], found["tokens"]) == ("restore", 8, 8 * jobs.STEP)
    assert found["lr_next"] == lr_of_step(9)


def test_the_resolved_recipe_is_read(made, capsys):
    """It holds the `stop_after` that ended the run, and every default of that time."""
    assert decision(capsys, recipe="run/recipe.resolved.yaml")["kind"] == "finished"


@pytest.mark.parametrize("base", ["export", CHECKPOINT])
def test_a_new_run_knows_what_its_base_has_seen(made, capsys, base):
    start = ("run_dir=next", "model.init=null", f"model.base={base}", "phases.0.schedule.start_lr=reached")
    found = decision(capsys, *start)
    assert (found["kind"], found["lr_next"]) == ("start", lr_of_step(9))
    assert main(["plan", "recipe.yaml", *start, "allow=[]"]) != 0
    assert "rewarm_on_same_data" in "".join(capsys.readouterr())


def test_the_run_is_drawn(made, capsys):
    told = answer(capsys, "report", "run", "--out", "report.html")
    page = (made / "report.html").read_text(encoding="utf-8")
    first, *_, last = (
        record for record in jobs.read(made / "run") if "eval/upstream/bits_per_byte" in record
    )
    for record in (first, last):
        for stream in ("upstream", "downstream"):
            assert f"{record[f'eval/{stream}/bits_per_byte']:.4f}" in told
    for share in ("zh 256", "en 768", "zh 832"):  # tokens of each source in each phase
        assert share in page


@pytest.mark.slow
def test_the_run_goes_on_to_its_end_as_if_it_had_never_been_stopped(made, capsys):
    _, expected = jobs.recorded(jobs.SAME_AS_MADE)
    done = runs.launch(made / "recipe.yaml", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert jobs.starts(made / "run") == ["start", "new_phase", "restore"]
    found = jobs.read(made / "run")
    # The first steps were made by an earlier release, whose loss was summed in another order.
    assert jobs.differences(expected, found, exact=False) == []
    assert decision(capsys)["kind"] == "finished"


@pytest.mark.slow
def test_an_export_has_the_weights_of_the_export_of_then(made, capsys):
    answer(capsys, "export", CHECKPOINT, "--out", "again")
    before, after = (load_file(made / name / "model.safetensors") for name in ("export", "again"))
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert after[name].dtype == weight.dtype, name
        assert torch.equal(after[name], weight), name
    for name in ("tokenizer.model", "tokenizer.json", "rewarm.json"):
        assert (made / "again" / name).read_bytes() == (made / "export" / name).read_bytes(), name


@pytest.mark.slow
def test_the_export_loads_where_rewarm_is_not(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(made / "export", output_loading_info=True)
    assert not any(report.values()), report
    for name, weight in load_file(made / "export" / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], weight), name
    text = "the law of a people 国家为了维护人民的权利"
    tokenizer = AutoTokenizer.from_pretrained(made / "export")
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.slow
@pytest.mark.parametrize(("model", "context"), [(CHECKPOINT, ()), ("export", ("--seq-len", "32"))])
def test_the_losses_of_then_are_measured_again(made, one_thread, capsys, model, context):
    expected = ANSWERS["eval"][model]
    found = json.loads(answer(capsys, "eval", model, "--data", *expected, *context, "--json"))
    tolerance = 0.0 if jobs.same_kind(ANSWERS["environment"]) else jobs.TOLERANCE
    for prefix, scores in expected.items():
        for name, value in scores.items():
            assert math.isclose(found[prefix][name], value, rel_tol=tolerance), (prefix, name)
