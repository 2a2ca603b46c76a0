"""A plan made before data, tokenizer and base are there, without torch; and each bad flag in one line."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.helpers import runs
from tokenization.errors import UserErrors
from trainer.cli.main import main
from trainer.plan.ahead import Ahead
from trainer.plan.make import make_plan
from trainer.plan.outlook import outlook
from trainer.plan.render import plan_to_json, render_plan
from trainer.recipe import load

SEVEN_B = runs.ROOT / "launch" / "recipes" / "llama2-7b-zh.yaml"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A folder in which nothing of a recipe is there but the presets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").symlink_to(runs.ROOT / "ds_configs")
    return tmp_path


def planned(*overrides, world_size=64, **assumed):
    ahead = Ahead(**{"available": 72 * 2**30, **assumed})
    return make_plan(load.load_recipe(SEVEN_B, overrides), world_size, ahead=ahead)


def test_what_is_missing_is_named_and_all_else_is_computed(empty):
    plan = planned(vocab_size=55_296)
    text = render_plan(plan, outlook(plan, "H100"))
    assert "data/zh-web, data/en-web: not there yet; sample counts are not known" in text
    assert "model.tokenizer: tokenizers/llama2-zh: not there yet" in text
    assert "models/llama2-7b-zh: not there yet; the sizes are those of llama2-7b" in text
    told = plan_to_json(plan, outlook(plan, "H100"))
    assert told["missing"] == {
        "tokenizer": True,
        "base": True,
        "sources": ["en-web", "zh-web"],
        "validation": ["downstream", "upstream"],
    }
    assert told["parameters"] == 6_738_415_616 + 2 * 23_296 * 4096
    assert [phase["steps"] for phase in told["phases"]] == [239, 4769]
    tokens = (239 + 4769) * 1024 * 4096
    assert told["flops"] == tokens * 46_657_437_696  # of a published count, with 55,296 pieces
    hours = tokens * 46_657_437_696 / (64 * 989e12 * 0.35) / 3600
    assert told["compute"]["hours"] == pytest.approx(hours)
    assert told["compute"]["gpu_hours"] == pytest.approx(64 * hours)
    assert told["checkpoint_bytes"] == 12 * told["parameters"]
    assert {row["preset"] for row in told["presets"]} >= {"zero0", "zero1", "zero2", "zero3", "zero3-offload"}
    zero0 = next(row for row in told["presets"] if row["preset"] == "zero0")
    assert (zero0["why_not"], zero0["largest_micro_batch"]) == ("needs fp32", 0)


def test_a_start_from_another_folder_names_the_one_that_the_paths_are_of(tmp_path, monkeypatch, capsys):
    data = tmp_path / "project"
    data.mkdir()
    runs.make_data(data)
    tree = runs.recipe(data, tmp_path / "run")
    tree["model"]["tokenizer"] = "tokenizer"
    (data / "recipes").mkdir()
    file = runs.write(tree, data / "recipes" / "zh.yaml")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert main(["plan", str(file), "--strict"]) == 2
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"rewarm: tokenizer is not in the working folder, {tmp_path / 'other'}")
    assert first.endswith(f"it is in {data}: start there")
    monkeypatch.chdir(data)
    assert main(["plan", str(file), "--strict"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path / "other")
    (data / "tokenizer").rename(data / "gone")
    assert main(["plan", str(file), "--strict"]) == 2
    assert "working folder" not in capsys.readouterr().err


def test_without_a_known_base_everything_else_is_shown(empty):
    plan = planned("model.base=models/own")
    assert any(
        "models/own: not there yet; memory, FLOPs and hours are not known" in note for note in plan.notes
    )
    assert outlook(plan) is None
    text = render_plan(plan)
    assert "4,769" in text
    assert "memory " not in text.replace("memory, FLOPs", "")


def test_a_strict_plan_refuses_what_training_would(empty):
    with pytest.raises(UserErrors, match="has no token shards"):
        planned(strict=True)
    with pytest.raises(UserErrors, match="has no token shards"):
        make_plan(load.load_recipe(SEVEN_B, ()), 64)


def test_what_is_there_and_damaged_is_refused_as_ever(empty):
    (empty / "data").mkdir()
    (empty / "data" / "zh-web.json").write_text("{")
    with pytest.raises(UserErrors, match="zh-web"):
        planned()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--gpu", "h1000"], "--gpu: 'h1000' is not a GPU whose peak FLOP/s are known"),
        (["--shape", "llama2-8b"], "--shape: 'llama2-8b' is not a model whose sizes are known"),
        (["--plot", "curve.png"], "--plot: 'curve.png' does not end in .svg"),
        (["--plot", "nowhere/curve.svg"], "--plot: 'nowhere/curve.svg' cannot be written"),
        (["--gpus", "7"], "global_batch_size: 1024 does not divide evenly among 7 ranks"),
    ],
)
def test_a_bad_flag_gets_one_line(empty, capsys, caplog, flags, line):
    assert main(["plan", str(SEVEN_B), *flags]) == 2
    captured = capsys.readouterr()
    told = captured.err + caplog.text
    assert line in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "flags", [["--mfu", "140%"], ["--gpu-memory", "0"], ["--gpus", "0"], ["--mfu", "fast"]]
)
def test_a_number_out_of_range_is_named(capsys, flags):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "r.yaml", *flags])
    assert ended.value.code == 2
    assert f"argument {flags[0]}" in capsys.readouterr().err


def test_a_flag_for_what_is_there_changes_nothing_and_says_so(tmp_path):
    data = runs.make_data(tmp_path / "made") if (tmp_path / "made").mkdir() is None else None
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    recipe = load.load_recipe(file, ())
    flags = make_plan(recipe, 1, ahead=Ahead(shape="llama2-7b", vocab_size=7))
    assert "--shape llama2-7b is not used: the sizes are read from model.init" in flags.notes
    assert any(re.fullmatch(r"--vocab-size 7 is not used: .* has \d+ pieces", note) for note in flags.notes)
    with pytest.raises(UserErrors, match="--shape"):
        make_plan(recipe, 1, ahead=Ahead(shape="llama9"))
    ahead, strict = make_plan(recipe, 1, ahead=Ahead()), make_plan(recipe, 1)
    assert (ahead.decision, ahead.layout, ahead.data) == (strict.decision, strict.layout, strict.data)
    assert ahead.memory == strict.memory == flags.memory


def test_the_picture_is_an_svg_of_the_rate_and_the_mixture(empty):
    assert main(["plan", str(SEVEN_B), "--gpu", "h100", "--gpus", "64", "--plot", "plan.svg"]) == 0
    root = ElementTree.parse(empty / "plan.svg").getroot()
    labels = [part.get("aria-label") for part in root if part.tag.endswith("svg")]
    assert labels == ["learning rate", "share of each source"]


def test_a_plan_imports_neither_torch_nor_transformers_nor_deepspeed(empty):
    code = (
        "import sys, json; from trainer.cli.main import main; "
        f"status = main(['plan', {str(SEVEN_B)!r}, '--gpus', '64', '--gpu', 'h100', '--plot', 'p.svg']); "
        "heavy = [name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules]; "
        "print(json.dumps([status, heavy]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
