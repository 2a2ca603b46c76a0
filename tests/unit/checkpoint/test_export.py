"""An export loads anywhere and gives the logits of the model that was trained."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.byte_level import save, tokenizer_json
from tests.helpers.checkpoints import manifest
from tests.helpers.model_tiny import CHINESE, ENGLISH, INIT, build, from_base, recipe, tokenizer, tokens
from tokenization.errors import UserError
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.proof import difference
from trainer.checkpoint.card import Card, render_card
from trainer.checkpoint.export import export_checkpoint, export_model, hold_run_tokenizer
from trainer.checkpoint.manifest import Checkpoint
from trainer.recipe.load import dump_recipe, parse_recipe
from trainer.storage.safetensors import Weight

PIECES = 3 + 256 + len(ENGLISH) + len(CHINESE)
CARD = Card("tiny", base="org/base", tokens=1_000_000)


def exported(tmp_path, causal, dtype="fp32", **changes):
    """The directory of an export with a tokenizer of PIECES pieces."""
    tok = tokenizer(tmp_path / "tok", *ENGLISH, *CHINESE)
    weights = changes.pop("weights", [Weight.of(*named) for named in causal.named_parameters()])
    export_model(
        weights, causal.hf.config, tok, tmp_path / "out", vocab_size=PIECES, dtype=dtype, card=CARD, **changes
    )
    return tmp_path / "out"


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("tied", ["false", "true"])
def test_logits_equal_the_trained_models(kind, tied, tmp_path):
    causal = build(recipe(**INIT[kind], tie_word_embeddings=tied, vocab_size=320), PIECES).eval()
    out = exported(tmp_path, causal, max_shard_bytes=20_000)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(loaded) is type(causal.hf)
    input_ids = tokens(2, 16, pieces=PIECES)
    logits = loaded(input_ids).logits
    assert logits.shape[-1] == PIECES, "padding must not be exported: it could be sampled"
    assert torch.equal(logits, causal.hf(input_ids).logits[..., :PIECES])
    assert len(list(out.glob("model-*.safetensors"))) > 1
    again = build(from_base(out), PIECES)
    assert torch.equal(again.hf(input_ids).logits, logits)


@pytest.mark.parametrize(("dtype", "wanted"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_rounded_to_the_dtype_asked_for(dtype, wanted, tmp_path):
    causal = build(recipe(), PIECES)
    loaded = AutoModelForCausalLM.from_pretrained(exported(tmp_path, causal, dtype), dtype="auto")
    trained = dict(causal.hf.named_parameters())
    for name, value in loaded.named_parameters():
        assert value.dtype == wanted
        assert torch.equal(value, trained[name].to(wanted)), name


def test_config_serves_those_who_use_the_model(tmp_path):
    out = exported(tmp_path, build(recipe(), PIECES), "bf16")
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == PIECES
    assert config["use_cache"] is True
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2


def test_gpt_neox_keeps_the_names_that_others_read(tmp_path):
    causal = build(recipe(**INIT["gpt_neox"]), PIECES)
    out = exported(tmp_path, causal)
    causal.hf.save_pretrained(tmp_path / "reference")
    from trainer.storage.safetensors import WeightsReader

    with WeightsReader(out) as ours, WeightsReader(tmp_path / "reference") as reference:
        assert set(ours.names) == set(reference.names)
        assert "embed_out.weight" in ours.names


def test_the_tokenizer_gives_the_ids_of_the_training(tmp_path):
    out = exported(tmp_path, build(recipe(), PIECES))
    trained = open_tokenizer(tmp_path / "tok")
    assert difference(out, trained) is None
    assert json.loads((out / "config.json").read_text())["tokenizer_fingerprint"] == trained.fingerprint
    assert (out / "tokenizer.model").read_bytes() == (tmp_path / "tok" / "tokenizer.model").read_bytes()


def test_special_ids_of_the_config_class_give_way_to_the_tokenizers(tmp_path):
    held = save(tmp_path / "bytes", tokenizer_json(special=("<|end|>", "<|pad|>")), pad_token="<|pad|>")
    pieces = open_tokenizer(held).size
    causal = build(recipe(), pieces)
    causal.hf.config.pad_token_id = 70  # a byte
    weights = [Weight.of(*named) for named in causal.named_parameters()]
    lines = export_model(
        weights, causal.hf.config, held, tmp_path / "out", vocab_size=pieces, dtype="fp32", card=CARD
    )
    for name in ("config.json", "generation_config.json"):
        told = json.loads((tmp_path / "out" / name).read_text())
        assert (told["eos_token_id"], told.get("bos_token_id")) == (pieces - 2, None), name
        assert told["pad_token_id"] == pieces - 1, name
    assert "config.json: eos_token_id 2 is 263 now, as the tokenizer has it" in lines


def test_what_the_base_says_of_generating_is_kept(tmp_path):
    told = {
        "temperature": 0.6,
        "top_p": 0.9,
        "do_sample": True,
        "eos_token_id": [2, 0],
        "pad_token_id": 32000,
    }
    out = exported(tmp_path, build(recipe(), PIECES), generation=told)
    kept = json.loads((out / "generation_config.json").read_text())
    assert kept == {**told, "pad_token_id": None}
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.temperature == 0.6


def test_an_export_is_replaced_where_that_is_asked_for(tmp_path):
    out = exported(tmp_path, build(recipe(), PIECES))
    with pytest.raises(UserError, match="exists and is not empty; give a new directory, or --overwrite"):
        exported(tmp_path, build(recipe("seed=1"), PIECES))
    before = (out / "model.safetensors").read_bytes()
    exported(tmp_path, build(recipe("seed=1"), PIECES), overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tok"]


TRAINED = {"vocab_size": PIECES, "model_type": "llama"}


def checkpoint(tmp_path, fingerprint=None, **changes):
    """A checkpoint that tells which tokenizer it was trained with, or not; and its recipe."""
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    path.mkdir(parents=True)
    told = {**TRAINED, **({"tokenizer_fingerprint": fingerprint} if fingerprint else {})}
    (path / "config.json").write_text(json.dumps(told))
    asked = recipe(f"model.tokenizer={tmp_path / 'tok'}", f"sources.a.path={tmp_path / 'shard'}")
    return Checkpoint(path, replace(manifest(1), recipe=dump_recipe(asked), **changes))


@pytest.mark.parametrize("tells", ["checkpoint", "shard", "shard of an earlier rewarm"])
def test_a_tokenizer_that_is_not_the_one_of_the_training_is_refused(tmp_path, tells):
    tokenizer(tmp_path / "tok", *ENGLISH, *CHINESE)
    trained = open_tokenizer(tmp_path / "tok")
    fingerprint = trained.fingerprint if tells != "shard of an earlier rewarm" else trained.fingerprint[:32]
    if tells != "checkpoint":
        options = {"vocab_size": trained.size, "tokenizer": fingerprint, "eos_id": 2}
        with ShardWriter(tmp_path / "shard", **options) as shard:
            shard.add_document([5, 6, 2])
    found = checkpoint(tmp_path, fingerprint if tells == "checkpoint" else None)
    fields = json.loads((found.path / "config.json").read_text())
    asked = parse_recipe(found.manifest.recipe)
    assert hold_run_tokenizer(found, asked, fields, trained) == []
    tokenizer(tmp_path / "tok", *ENGLISH, *reversed(CHINESE))
    with pytest.raises(UserError, match=r"model.tokenizer: '.*tok' is .* now, and the run was trained with"):
        export_checkpoint(found, tmp_path / "out", "bf16", 10**9)
    assert not (tmp_path / "out").exists()


def test_a_training_whose_tokenizer_nothing_tells_is_said(tmp_path):
    tokenizer(tmp_path / "tok", *ENGLISH, *CHINESE)
    found = checkpoint(tmp_path)
    (line,) = hold_run_tokenizer(
        found, parse_recipe(found.manifest.recipe), {}, open_tokenizer(tmp_path / "tok")
    )
    assert "neither the checkpoint nor a shard tells the tokenizer" in line


def test_names_with_and_without_prefix_are_the_same_and_a_repeat_is_left_out(tmp_path):
    causal = build(recipe(), PIECES)
    named = [*causal.hf.state_dict().items(), *causal.named_parameters()]
    weights = [Weight.of(name, value) for name, value in named]
    loaded = AutoModelForCausalLM.from_pretrained(exported(tmp_path, causal, weights=weights))
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in causal.hf.state_dict().items())


def test_a_weight_beyond_fp16_is_refused_and_nothing_is_left(tmp_path):
    causal = build(recipe(), PIECES)
    with torch.no_grad():
        causal.hf.model.layers[1].mlp.up_proj.weight[3, 4] = 70_000
    with pytest.raises(
        UserError,
        match=r"'model.layers.1.mlp.up_proj.weight' reaches 7e\+04, beyond the range of fp16; export",
    ):
        exported(tmp_path, causal, "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["tok"]


def test_weights_without_an_embedding_are_refused(tmp_path):
    causal = build(recipe(), PIECES)
    rest = [Weight.of(name, value) for name, value in causal.named_parameters() if "embed" not in name]
    with pytest.raises(UserError, match=r"'model.embed_tokens.weight' is not among the weights"):
        exported(tmp_path, causal, weights=rest)
    assert not (tmp_path / "out").exists()


def test_weights_are_made_one_at_a_time_whatever_a_shard_holds(tmp_path):
    causal = build(recipe(), PIECES)
    made: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    held = []

    def make(value):
        made.add(fresh := value.detach().clone())
        held.append(len(made))
        return fresh

    weights = [
        Weight(name, tuple(value.shape), value.dtype, partial(make, value))
        for name, value in causal.named_parameters()
    ]
    exported(tmp_path, causal, weights=weights)
    assert len(held) == len(weights)
    assert max(held) <= 2, "the next one may be made while the last is being let go"


def test_the_card_tells_where_the_model_comes_from():
    card = Card(
        "llama2-zh",
        base="org/base",
        tokens=20_000_000_000,
        phases=[{"name": "embeddings", "mixture": "zh 75% | en 25%"}, {"name": "all", "schedule": "cosine"}],
        evaluation={"upstream bits per byte": 0.91234, "forgetting": 0.0123},
        lineage=[{"step": 0, "decision": "start"}],
    )
    text = render_card(card, "bf16")
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "base_model: org/base\n" in text
    assert "continues `org/base`, trained on 20,000,000,000 tokens with rewarm; weights in bf16." in text
    assert "| name | mixture | schedule |\n| --- | --- | --- |\n" in text
    assert "| embeddings | zh 75% \\| en 25% |  |\n| all |  | cosine |" in text
    assert "| forgetting | 0.0123 |" in text
    assert "| step | decision |\n| --- | --- |\n| 0 | start |" in text
    assert "starts from random weights" in render_card(Card("x"), "fp32")


def test_a_directory_is_no_base_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "base_model: models/base\n" in render_card(Card("x", base="models/base"), "fp32")
    (tmp_path / "models" / "base").mkdir(parents=True)
    for base in ("models/base", "/models/base", "./base", "~/base", "runs/a/b"):
        text = render_card(Card("x", base=base), "fp32")
        assert "base_model" not in text
        assert f"continues `{base}`" in text
