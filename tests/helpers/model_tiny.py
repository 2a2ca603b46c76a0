"""Tiny models of every supported architecture, recipes for them, and SentencePiece models made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2 as proto

from tokenization.errors import UserError, UserErrors
from tokenization.tokenizer.files import open_tokenizer
from trainer.checkpoint.card import Card
from trainer.checkpoint.export import export_model
from trainer.model.architecture import check_config, resolve_config
from trainer.model.build import build_model
from trainer.model.loss import CausalLM
from trainer.recipe.load import parse_recipe
from trainer.recipe.schema import Recipe
from trainer.storage.safetensors import Weight

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
INIT: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "num_key_value_heads": 2},
    "mistral": {**SHAPE, "num_key_value_heads": 2, "model_type": "mistral"},
    "qwen2": {**SHAPE, "num_key_value_heads": 2, "model_type": "qwen2"},
    "gpt_neox": {**SHAPE, "model_type": "gpt_neox"},
}

RECIPE = """
name: tiny
model: {tokenizer: tok, dtype: fp32, init: {}}
deepspeed: ds_configs/zero0.json
seq_len: 16
global_batch_size: 4
sources: {a: {path: a, role: new}}
phases: [{name: one, tokens: 1e6, mixture: {a: 1}, schedule: {kind: constant, max_lr: 1e-3}}]
validation: {every_tokens: 1e5}
checkpoint: {every_tokens: 1e5}
"""


def recipe(*overrides: str, **init: Any) -> Recipe:
    """A recipe with random weights; `init` changes or completes SHAPE (a LLaMA with GQA by default)."""
    fields = ", ".join(f"{name}: {value}" for name, value in {**SHAPE, **(init or INIT["llama"])}.items())
    return parse_recipe(RECIPE, [f"model.init={{{fields}}}", *overrides])


def from_base(base: Path, *overrides: str) -> Recipe:
    """A recipe that goes on from a model directory."""
    return parse_recipe(RECIPE, ["model.init=null", f"model.base={base}", *overrides])


def build(recipe: Recipe, pieces: int, **options: Any) -> CausalLM:
    """The recipe's model, for a tokenizer of `pieces` pieces."""
    return build_model(resolve_config(recipe, pieces), recipe, pieces, **options)


def config_problems(recipe: Recipe, pieces: int) -> list[UserError]:
    """All that is wrong with the recipe's model, as a plan reports it."""
    try:
        config = resolve_config(recipe, pieces)
    except UserErrors as found:
        return found.problems
    except UserError as error:
        return [error]
    return check_config(config, recipe, pieces)


def tokens(*shape: int, pieces: int, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, pieces, shape, generator=torch.Generator().manual_seed(seed))


def sentencepiece_model(*pieces: str) -> proto.ModelProto:
    """A BPE model in LLaMA's layout: unk, bos, eos, 256 bytes, then `pieces` in order of their merges."""
    model = proto.ModelProto()
    kinds = proto.ModelProto.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kinds.BYTE)
    for rank, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(rank), type=kinds.NORMAL)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


ENGLISH = ("▁", "a", "b", "c", "ab", "▁ab", "中", "国")
CHINESE = ("中国", "▁c", "國")
"""What the base lacks: a word of two of its pieces, one with a space, one known only as bytes."""


def tokenizer(directory: Path, *pieces: str) -> Path:
    """A tokenizer directory with the SentencePiece model of `pieces`."""
    directory.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(*pieces)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return directory


def exported_tiny(folder: Path, state: dict[str, Any] | None = None) -> Path:
    """An export with random weights, the pieces of ENGLISH and a context of 64; its documents are short."""
    tok = open_tokenizer(tokenizer(folder / "tok", *ENGLISH))
    causal = build(recipe(**INIT["llama"], max_position_embeddings=64), tok.size)
    weights = [Weight.of(*named) for named in causal.named_parameters()]
    export_model(
        weights, causal.hf.config, folder / "tok", folder / "model", vocab_size=tok.size, dtype="fp32",
        card=Card("tiny", state=state),
    )  # fmt: skip
    return folder / "model"
