"""A recipe from a few answers plans clean, whatever they are."""

import contextlib
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import runs
from tokenization.errors import RewarmError, UserError
from trainer.cli.main import main
from trainer.plan.ahead import Ahead
from trainer.plan.make import make_plan
from trainer.plan.new_recipe import Answers, new_recipe
from trainer.plan.presets import fits
from trainer.recipe.load import parse_recipe

GIB = 2**30


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """A folder without the data and models that a user may have in the clone."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "ds_configs").symlink_to(runs.ROOT / "ds_configs")
    with contextlib.chdir(folder):
        yield


def answers(**changes):
    given = {
        "base": "models/llama2-7b",
        "tokenizer": None,
        "new": ["data/zh-web"],
        "replay": ["data/en-web"],
        "tokens": 20 * 10**9,
        "gpus": 8,
        "name": "zh",
    }
    return Answers(**{**given, **changes})


PREFIXES = st.lists(
    st.text(st.sampled_from("ab/.-_ 0 é中'\":#{}"), min_size=1, max_size=8), max_size=3, unique=True
)


@settings(max_examples=25, deadline=None)
@given(
    base=st.sampled_from(["models/llama2-7b", "my/llama-3-8b", "unknown", "pythia-410m"]),
    tokenizer=st.sampled_from([None, "tokenizers/zh", "1e-4", "null"]),
    new=PREFIXES.filter(bool),
    replay=PREFIXES,
    tokens=st.integers(10**6, 10**12),
    gpus=st.integers(1, 70),
    ratio=st.fractions(0, 1, max_denominator=1000),
)
def test_whatever_the_answers_the_recipe_says_them_and_plans_clean(
    base, tokenizer, new, replay, tokens, gpus, ratio
):
    replay = [prefix for prefix in replay if prefix not in new]
    told = answers(
        base=base, tokenizer=tokenizer, new=new, replay=replay, tokens=tokens, gpus=gpus, replay_ratio=ratio
    )
    recipe = parse_recipe(new_recipe(told, 72 * GIB))
    assert (recipe.model.base, recipe.model.tokenizer) == (base, tokenizer or base)
    assert [source.path for source in recipe.sources.values()] == [*new, *replay]
    assert sum(phase.tokens for phase in recipe.phases) == tokens
    assert [phase.name for phase in recipe.phases] == (
        ["all"] if tokenizer is None else ["embeddings", "all"]
    )
    assert {phase.mixture[0].replay_ratio for phase in recipe.phases} == {ratio if replay else 0}
    plan = make_plan(recipe, gpus, ahead=Ahead(available=72 * GIB))
    assert plan.decision.kind == "start"
    assert recipe.tokens_per_step <= 2**22 or recipe.global_batch_size == gpus


@pytest.mark.parametrize(
    ("base", "gpus", "gib", "preset"),
    [
        ("pythia-410m", 8, 72, "zero1"),
        ("models/llama2-7b", 8, 72, "zero1"),
        ("models/llama2-13b", 8, 72, "zero2"),
        ("models/llama2-70b", 64, 72, "zero3"),
        ("models/llama2-7b", 1, 72, "zero2-offload"),
    ],
)
def test_the_preset_is_the_fastest_that_fits(base, gpus, gib, preset):
    recipe = parse_recipe(new_recipe(answers(base=base, gpus=gpus), gib * GIB))
    assert recipe.deepspeed == f"ds_configs/{preset}.json"
    plan = make_plan(recipe, gpus, ahead=Ahead(available=gib * GIB))
    chosen = next(fits(recipe, plan.model_config, gpus, gib * GIB, cuda=True))
    assert chosen.largest_micro_batch >= 1


def test_what_fits_nowhere_is_one_line():
    with pytest.raises(UserError, match="does not fit into 1 rank"):
        new_recipe(answers(base="models/llama2-70b", gpus=1), 2 * GIB)


def test_samples_are_no_longer_than_the_base_reads():
    assert parse_recipe(new_recipe(answers(base="pythia-410m"), 72 * GIB)).seq_len == 2048
    with pytest.raises(RewarmError, match="8192"):
        new_recipe(answers(base="pythia-410m", seq_len=8192), 72 * GIB)


def test_the_command_writes_a_file_once(tmp_path, capsys):
    out = tmp_path / "folder" / "zh.yaml"
    words = [
        "recipe",
        "new",
        "--out",
        str(out),
        "--base",
        "models/llama2-7b-zh",
        "--tokenizer",
        "tokenizers/zh",
    ]
    words += [
        "--new",
        "data/zh",
        "--replay",
        "data/en",
        "--replay-ratio",
        "1%",
        "--tokens",
        "20e9",
        "--gpu",
        "h100",
    ]
    assert main(words) == 0
    assert f"rewarm plan {out} --gpus 8 --gpu h100" in capsys.readouterr().out
    assert f"#   deepspeed launch/train.py {out}  " in out.read_text(encoding="utf-8")
    recipe = parse_recipe(out.read_text(encoding="utf-8"))
    assert recipe.name == "zh"
    assert recipe.phases[1].mixture[0].replay_ratio == Fraction(1, 100)
    assert recipe.validation.paths == {
        "downstream/zh": "data/zh-validation",
        "upstream/en": "data/en-validation",
    }
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_held_out_text_is_the_clean_one_where_it_was_made(tmp_path, monkeypatch):
    runs.make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for source, held_out in (("en", "en-val"), ("zh", "zh-val")):
        for ending in ("bin", "idx", "json"):
            shard = Path(f"{held_out}.{ending}").read_bytes()
            Path(f"{source}-validation.{ending}").write_bytes(shard)
            if source == "zh":
                Path(f"zh-validation-clean.{ending}").write_bytes(shard)
    asked = answers(new=["zh"], replay=["en"], tokenizer="tokenizer", tokens=10_000, gpus=2)
    recipe = parse_recipe(new_recipe(asked, 72 * GIB))
    assert recipe.validation.paths == {
        "downstream/zh": "zh-validation-clean",
        "upstream/en": "en-validation",
    }


@pytest.mark.parametrize("ratio", [Fraction(0), Fraction(1, 4), Fraction(9, 10)])
def test_a_budget_beyond_the_shards_is_refused_with_one_that_plans_clean(tmp_path, monkeypatch, ratio):
    runs.make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("zh", "en"):
        for ending in ("bin", "idx", "json"):
            Path(f"{name}-validation.{ending}").write_bytes(Path(f"{name}-val.{ending}").read_bytes())
    asked = answers(new=["zh"], replay=["en"], tokenizer="tokenizer", gpus=2, seq_len=32, replay_ratio=ratio)
    with pytest.raises(UserError, match=r"^--tokens: 20000000000 are more than") as told:
        new_recipe(asked, 72 * GIB)
    (most,) = re.findall(r"at most ([\d,]+)", str(told.value))
    new_recipe(replace(asked, tokens=int(most.replace(",", ""))), 72 * GIB)
