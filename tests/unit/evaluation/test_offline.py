"""`rewarm eval` tells what its scores are measured on, beside what the run measured."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.model_tiny import CHINESE, ENGLISH, build, recipe, tokenizer
from tokenization.shards.store import open_tokens
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from trainer.checkpoint.card import Card
from trainer.checkpoint.export import export_model
from trainer.cli.main import main
from trainer.evaluation import against
from trainer.evaluation.held_out import measured_on
from trainer.evaluation.offline import run_seq_len, score_model
from trainer.model.loss import CausalLM
from trainer.storage.safetensors import Weight


@pytest.fixture
def folder(tmp_path):
    """An export `of-run` of a run with windows of 16, a model `other`, and a shard of 300 tokens."""
    tok = open_tokenizer(tokenizer(tmp_path / "tok", *ENGLISH, *CHINESE))
    causal = build(recipe(), tok.size)
    for name, state in (("of-run", {"settings": {"seq_len": 16, "document_mask": "none"}}), ("other", None)):
        weights = [Weight.of(*named) for named in causal.named_parameters()]
        export_model(
            weights, causal.hf.config, tmp_path / "tok", tmp_path / name,
            vocab_size=tok.size, dtype="fp32", card=Card(name, state=state),
        )  # fmt: skip
    options = {"vocab_size": tok.size, "tokenizer": tok.fingerprint, "eos_id": 2}
    with ShardWriter(tmp_path / "held", **options) as shard:
        shard.add_document([*np.random.default_rng(0).integers(3, tok.size, 299), 2], 900)
    return tmp_path


def evaluated(folder, capsys, model, *words):
    assert main(["eval", str(folder / model), "--data", str(folder / "held"), *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "words", "seq_len", "said"),
    [
        ("of-run", [], 16, "299 tokens in windows of 16, the run's seq_len"),
        (
            "of-run",
            ["--seq-len", "64"],
            64,
            "in windows of 64; the run's seq_len is 16, so its own scores are not",
        ),
        ("other", [], 2048, "in windows of 2,048 (no run's seq_len is known)"),
        ("other", ["--seq-len", "32"], 32, "in windows of 32 (no run's seq_len is known)"),
    ],
)
def test_the_length_of_the_windows_is_said_and_that_of_the_run(folder, capsys, model, words, seq_len, said):
    assert said in evaluated(folder, capsys, model, *words)
    (told,) = json.loads(evaluated(folder, capsys, model, "--json", *words)).values()
    assert told["measured_on"] == measured_on(open_tokens(folder / "held"), seq_len, None)
    assert told["run_seq_len"] == (16 if model == "of-run" else None)


def test_a_few_tokens_cost_a_few_positions(folder, monkeypatch):
    seen, forward = [], CausalLM.forward

    def counted(self, ids, *rest):
        seen.append(ids.numel())
        return forward(self, ids, *rest)

    monkeypatch.setattr(CausalLM, "forward", counted)
    (score,) = score_model(str(folder / "other"), [str(folder / "held")], max_tokens=100).values()
    assert score.tokens == sum(seen) == 100


def test_the_width_of_the_padding_changes_no_score(folder):
    held = str(folder / "held")
    wide, exact = (score_model(str(folder / "other"), [held], length)[held] for length in (2048, 299))
    assert wide.nats == pytest.approx(exact.nats, rel=1e-12)
    assert torch.isfinite(torch.tensor(wide.nats))


def test_a_state_that_is_damaged_is_named(folder, capsys):
    (folder / "of-run" / "rewarm.json").write_text('{"settings": 3}')
    assert main(["eval", str(folder / "of-run"), "--data", str(folder / "held")]) == 2
    assert "rewarm.json: does not tell the state of a run; export it again" in capsys.readouterr().err
    assert run_seq_len(str(folder / "other")) is None


def test_a_model_against_another_is_scored_in_windows_of_one_length_on_the_same_text(folder, capsys):
    own = json.loads(evaluated(folder, capsys, "of-run", "--json"))
    (told,) = json.loads(
        evaluated(folder, capsys, "of-run", "--against", str(folder / "other"), "--json")
    ).values()
    base = json.loads(evaluated(folder, capsys, "other", "--seq-len", "16", "--json"))
    held = str(folder / "held")
    assert told["bits_per_byte"] == own[held]["bits_per_byte"]
    assert told["against"]["bits_per_byte"] == base[held]["bits_per_byte"]
    assert told["forgetting"] == told["bits_per_byte"] - told["against"]["bits_per_byte"]
    text = evaluated(folder, capsys, "other", "--against", str(folder / "other"))
    assert f"{held}: forgetting +0.0000 bits/byte against {folder / 'other'}" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--against-data", "x"], "has no effect without --against"),
        (["--against", "other", "--against-data", "x", "y"], "names 2 shard(s), and --data 1"),
        (
            ["--against", "other", "--against-data", "held", "--max-tokens", "9"],
            "different parts of the text",
        ),
        (["--against", "other", "--against-data", "nowhere"], "has no token shards"),
    ],
)
def test_what_cannot_be_compared_is_one_line(folder, capsys, monkeypatch, words, line):
    monkeypatch.chdir(folder)
    assert main(["eval", "of-run", "--data", "held", *words]) == 2
    assert line in capsys.readouterr().err


def test_a_base_with_another_tokenizer_is_scored_on_shards_of_its_own(folder, capsys, monkeypatch):
    """A model whose vocabulary was extended, against the base that it was extended from."""
    monkeypatch.chdir(folder)
    tok = open_tokenizer(tokenizer(folder / "own-tok", *ENGLISH))
    causal = build(recipe(), tok.size)
    weights = [Weight.of(*named) for named in causal.named_parameters()]
    export_model(
        weights, causal.hf.config, folder / "own-tok", folder / "base",
        vocab_size=tok.size, dtype="fp32", card=Card("base"),
    )  # fmt: skip
    options = {"vocab_size": tok.size, "tokenizer": tok.fingerprint, "eos_id": 2}
    with ShardWriter(folder / "own-held", **options) as shard:
        shard.add_document([*np.random.default_rng(1).integers(3, tok.size, 399), 2], 900)
    words = ["eval", "of-run", "--data", "held", "--against", "base"]
    with monkeypatch.context() as patch:
        patch.setattr(against, "score_model", None)  # it is known before anything is scored
        assert main(words) == 2
    told = capsys.readouterr().err
    assert "was made with tokenizer" in told
    assert "give the same text as shards of that tokenizer with --against-data" in told
    assert main([*words, "--against-data", "own-held", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out).values()
    alone = score_model("base", ["own-held"], 16)["own-held"]
    assert told["against"]["bits_per_byte"] == pytest.approx(alone.bits_per_byte)
