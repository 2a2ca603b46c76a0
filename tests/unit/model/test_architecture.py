"""What is wrong with a model, told before a run starts: field, value, what, fix."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.helpers.model_tiny import INIT, config_problems, from_base, recipe
from tokenization.errors import InfrastructureError, UserError
from trainer.model.architecture import resolve_config

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 90,
    "max_position_embeddings": 64,
}


def base(tmp_path, **changes):
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (
            {"hiden_size": 32},
            "model.init.hiden_size: is not a field of the model's config; did you mean 'hid",
        ),
        ({"dtype": "bf16"}, "model.init.dtype: is not a field of the model's config; see LlamaConfig"),
        ({"hidden_size": 34}, "model.init.hidden_size: 34 is not a multiple of num_attention_heads 4; use"),
        ({"hidden_size": "wide"}, "model.init.hidden_size: 'wide' is not a whole number of at least 1"),
        ({"num_hidden_layers": 0}, "model.init.num_hidden_layers: 0 is not a whole number of at least 1"),
        ({"num_attention_heads": "4.5"}, "model.init.num_attention_heads: 4.5 is not a whole number"),
        ({"num_key_value_heads": 3}, "model.init.num_key_value_heads: 3 does not divide 4 heads; choose"),
        ({"hidden_act": "sillu"}, "model.init.hidden_act: 'sillu' is not an activation; did you mean 'silu'"),
        ({"model_type": "lama"}, "'lama' is not a supported model_type; did you mean 'llama'?"),
        ({"model_type": "bert"}, "'bert' is not a supported model_type; supported are llama, mistral"),
        ({"vocab_size": 80}, "model.init.vocab_size: 80 does not fit the tokenizer's 90 pieces; remove"),
        ({"max_position_embeddings": 8}, "seq_len: 16 is above the model's max_position_embeddings 8"),
        ({"rms_norm_eps": "small"}, "model.init: is refused by transformers"),
    ],
)
def test_each_mistake_in_init_is_told_in_one_line(init, words):
    problems = config_problems(recipe(**{**INIT["llama"], **init}), 90)
    assert len(problems) == 1
    assert words in str(problems[0])
    assert "\n" not in str(problems[0])


@pytest.mark.parametrize(
    ("parts", "init", "words"),
    [
        (3, {}, ["seq_len: 16 does not divide into 3 parts; use 15 or 18", "use one of [1, 2, 4]"]),
        (8, {}, ["sequence_parallel_size: 8 does not divide the model's 4 heads and 2 key and value heads"]),
        (
            2,
            {"num_attention_heads": 6, "hidden_size": 36, "num_key_value_heads": 3},
            ["6 heads and 3 key and value heads evenly; use one of [1, 3, 6]"],
        ),
        (2, {"rope_scaling": "{rope_type: dynamic, factor: 2.0}"}, ["cannot be used with RoPE of type dyn"]),
    ],
)
def test_what_cannot_be_cut_among_ranks_is_told(parts, init, words):
    shape = {**INIT["llama"], **init}
    problems = config_problems(recipe(f"sequence_parallel_size={parts}", **shape), 90)
    assert len(problems) == len(words)
    for word, problem in zip(words, problems, strict=True):
        assert word in str(problem)


@pytest.mark.parametrize(("parts", "groups"), [(2, 2), (4, 2), (4, 1), (2, 4)])
def test_what_can_be_cut_among_ranks_passes(parts, groups):
    shape = {**INIT["llama"], "num_key_value_heads": groups}
    assert config_problems(recipe(f"sequence_parallel_size={parts}", **shape), 90) == []


def test_all_mistakes_are_told_at_once():
    problems = config_problems(recipe(hiden_size=1, num_hidden_layers=0, hidden_act="x"), 90)
    assert len(problems) == 3


def test_numbers_are_read_as_people_write_them():
    shape = {**INIT["llama"], "rope_theta": "1e6", "rms_norm_eps": "1e-5", "max_position_embeddings": "4e3"}
    config = resolve_config(recipe(**shape), 90)
    assert config["rope_parameters"]["rope_theta"] == 1_000_000
    assert config["rms_norm_eps"] == 0.00001
    assert config["max_position_embeddings"] == 4000
    assert config["vocab_size"] == 90


@pytest.mark.parametrize("kind", INIT)
def test_every_architecture_passes(kind):
    assert config_problems(recipe(**INIT[kind]), 90) == []


@pytest.mark.parametrize(
    ("changes", "vocab_size", "words"),
    [
        ({"vocab_size": 90}, 120, "rewarm model extend --base {base} --tokenizer tok --out DIR"),
        ({"vocab_size": 1000}, 90, "has 1000 embedding rows and the tokenizer tok has 90 pieces; give"),
        ({"model_type": "gemma"}, 90, "'gemma' is not a supported model_type"),
        ({"hidden_size": None}, 90, "its config.json has hidden_size: None, which is not a size; copy"),
        ({"max_position_embeddings": 8}, 90, "seq_len: 16 is above the model's max_position_embeddings 8"),
    ],
)
def test_a_base_that_does_not_fit_is_told_from_its_config_alone(tmp_path, changes, vocab_size, words):
    directory = base(tmp_path, **changes)
    problems = config_problems(from_base(directory), vocab_size)
    assert len(problems) == 1
    assert words.format(base=directory) in str(problems[0])


@pytest.mark.parametrize("rows", [90, 91, 128, 601])
def test_a_base_may_be_padded(tmp_path, rows):
    assert config_problems(from_base(base(tmp_path, vocab_size=rows)), 90) == []


def test_a_base_may_not_be_padded_without_end(tmp_path):
    assert len(config_problems(from_base(base(tmp_path, vocab_size=602)), 90)) == 1


def test_a_base_that_is_nowhere(tmp_path):
    for name in ("nowhere", str(tmp_path / "nowhere"), "./a/b"):
        (problem,) = config_problems(from_base(name), 90)
        assert (
            str(problem)
            == f"model.base: {name!r} does not exist; give a model directory or a hub id, org/name"
        )


def test_a_base_without_config(tmp_path):
    (problem,) = config_problems(from_base(tmp_path), 90)
    assert "is not a model directory: it has no config.json" in str(problem)
    (tmp_path / "params.json").write_text("{}")
    (problem,) = config_problems(from_base(tmp_path), 90)
    assert "these are Meta's own files: get the model in Hugging Face form" in str(problem)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (problem,) = config_problems(from_base(tmp_path), 90)
    assert str(problem).startswith(f"{tmp_path}/config.json: ")


def test_a_hub_that_cannot_be_reached_is_not_the_users_fault(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        InfrastructureError, match="'org/name' is not a directory, and the hub cannot be reached"
    ):
        config_problems(from_base("org/name"), 90)

    def absent(*_, **__):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    (problem,) = config_problems(from_base("org/name"), 90)
    assert isinstance(problem, UserError)
    assert "'org/name' is neither a directory nor a model on the hub (404)" in str(problem)


def test_flash_attention_wants_its_package_and_half_precision():
    problems = config_problems(recipe("model.attention=flash_attention_2"), 90)
    told = " ".join(map(str, problems))
    assert "model.attention: 'flash_attention_2' computes in bf16 or fp16 only" in told


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.lr_scale={new_rows: 2}", "schedule.lr_scale: 'new_rows' needs appended rows, but"),
        ("train=new_rows", "train: 'new_rows' needs appended rows, but the model was not extended"),
        ("train=[a(]", "train: 'a(' is not a regular expression"),
    ],
)
def test_what_a_phase_cannot_train(override, words):
    (problem,) = config_problems(recipe(f"phases.0.{override}"), 90)
    assert str(problem).startswith("phases.0.")
    assert words in str(problem)


def test_new_rows_cannot_keep_moments_that_would_move_old_rows(tmp_path):
    grown = from_base(
        base(tmp_path, base_vocab_size=80), "phases.0.train=new_rows", "phases.0.keep_optimizer=true"
    )
    (problem,) = config_problems(grown, 90)
    assert "phases.0.keep_optimizer: would update old embedding rows" in str(problem)
    assert config_problems(from_base(tmp_path, "phases.0.train=new_rows"), 90) == []
