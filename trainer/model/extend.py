"""`rewarm model extend`: add embedding rows for an extended tokenizer, offline, in bounded memory.

Resizing embeddings inside ZeRO-3 has a long list of bug reports; here it is done once, on a plain model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from torch import Tensor

from tokenization.disk import refuse_existing, whole_directory
from tokenization.errors import UserError
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from tokenization.tokenizer.hf_json import SPACE
from tokenization.vocabulary.extend import whole_model
from trainer.model.architecture import EMBEDDINGS, check_sizes, check_type, file_name, read_config
from trainer.model.rope import with_both_forms
from trainer.model.tokenizer import write_tokenizer
from trainer.model.tokens import TOKENIZER, padding, with_special
from trainer.model.trained import BASE_ROWS
from trainer.storage.hub import GENERATION, local_directory, read_generation
from trainer.storage.run_directory import EXPORTED
from trainer.storage.safetensors import Weight, WeightsReader, WeightsWriter

NewRows = Literal["subpiece_mean", "mean", "random"]

MULTIPLE = 64
"""The rows of the embeddings are padded to a multiple of this, for fast matrix products."""


@dataclass(frozen=True)
class ModelExtension:
    """The difference between a base's vocabulary and an extended one."""

    base_pieces: int
    pieces: int
    rows: int
    """Rows of the new embeddings: the pieces, and padding to a multiple of `MULTIPLE`."""
    splits: Sequence[Sequence[int]]
    """For each new piece the base's ids of its text; empty for a piece without text."""
    lines: Sequence[str] = ()
    """What differs from the base."""

    @property
    def mean_split(self) -> float:
        """Average number of base tokens that a new piece replaces."""
        return sum(map(len, self.splits)) / len(self.splits)


def extend_model(
    base: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    new_rows: NewRows = "subpiece_mean",
    seed: int = 0,
    overwrite: bool = False,
) -> ModelExtension:
    """Write the model `base`, with rows for the new pieces of `tokenizer`, to the new directory `out`.

    Base rows and all other weights are copied unchanged. A new row, in the input and in the output
    embedding, is the mean of the rows of the base tokens of its text (`subpiece_mean`), the mean of all
    base rows (`mean`), or normal with the standard deviation of the base rows (`random`). Padding rows
    hold the mean: their logit is the mean of the base's logits and never the largest. One
    tensor is in memory at a time.

    Raises:
        UserError: `base` is not a supported model directory, `tokenizer` does not extend its tokenizer or
            adds nothing, or `out` is not empty (unless `overwrite`).
        InfrastructureError: the disk is full or cannot be written.
    """
    base = local_directory(base, field="--base")
    config = read_config(base, field="--base")
    check_type(config.get("model_type"), field="--base", file=base)
    refuse_existing(out, overwrite=overwrite)
    own, opened = open_tokenizer(base), open_tokenizer(tokenizer)
    _hold_recorded(base, config, own)
    check_sizes(config, field="--base", file=base)
    extension = compare_tokenizers(base, tokenizer, config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings", False))
    input_name, output_name = EMBEDDINGS[config["model_type"]]
    grown = {input_name} if tied else {input_name, output_name}
    with WeightsReader(base) as weights, whole_directory(out, overwrite=overwrite) as draft:
        names = {name: file_name(config["model_type"], name) for name in weights.names}
        if missing := grown - set(names.values()):
            raise UserError("is missing from the weights", file=base, value=min(missing))
        writer = WeightsWriter(draft)
        for name, final in names.items():
            shape, dtype = tuple(weights.shape(name)), weights.dtype(name)
            if final in grown:
                generator = torch.Generator().manual_seed(seed + (final == output_name))
                make = partial(_grown, weights, name, extension, new_rows, generator)
                writer.add(Weight(final, (extension.rows, *shape[1:]), dtype, make))
            elif not (tied and final == output_name):
                writer.add(Weight(final, shape, dtype, partial(weights.__getitem__, name)))
        writer.close()
        told, lines = with_special(with_both_forms(config), opened, "config.json", extension.base_pieces)
        rows = {"vocab_size": extension.rows, BASE_ROWS: extension.base_pieces}
        told |= {**rows, TOKENIZER: opened.fingerprint}
        lines += padding(told, opened, "--base", str(base))
        (draft / "config.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if (generation := read_generation(base)) is not None:
            settings, more = with_special(generation, opened, GENERATION, extension.base_pieces)
            (draft / GENERATION).write_text(
                json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8"
            )
            lines += more
        _carry_lineage(base, draft, extension.rows - extension.base_pieces)
        lines += write_tokenizer(opened, draft, own).lines
    return replace(extension, lines=lines)


def _hold_recorded(base: Path, config: Mapping[str, Any], own: Tokenizer) -> None:
    """Hold the tokenizer beside the base against the one that its rows were made for.

    Raises:
        UserError: it has been replaced.
    """
    recorded = config.get(TOKENIZER)
    if isinstance(recorded, str) and not same(recorded, own.fingerprint):
        what = f"has rows of the tokenizer {recorded}, and the one beside them is {own.fingerprint}"
        fix = "put the tokenizer back that the model was made with"
        raise UserError(what, field="--base", value=str(base), fix=fix)


def _carry_lineage(base: str | Path, draft: Path, new_rows: int) -> None:
    """Copy what an export records of its run: the LR that it reached, and the data that it has seen."""
    if (exported := Path(base) / EXPORTED).is_file():
        state = json.loads(exported.read_text(encoding="utf-8"))
        state["new_rows"] = state.get("new_rows", 0) + new_rows
        (draft / EXPORTED).write_text(json.dumps(state), encoding="utf-8")


def _grown(
    weights: WeightsReader,
    name: str,
    extension: ModelExtension,
    new_rows: NewRows,
    generator: torch.Generator,
) -> Tensor:
    """Read the embedding `name` `[base rows, hidden]`, and add new and padding rows."""
    base = weights[name][: extension.base_pieces]
    mean, added = base.mean(dim=0, dtype=torch.float32), len(extension.splits)
    if new_rows == "random":
        std = base.float().std().item()
        fresh = torch.empty(added, base.shape[1]).normal_(0.0, std, generator=generator)
    else:
        fresh = mean.expand(added, -1).clone()
    if new_rows == "subpiece_mean":
        for row, split in zip(fresh, extension.splits, strict=True):
            if split:
                row.copy_(base[list(split)].mean(dim=0, dtype=torch.float32))
    padding = mean.expand(extension.rows - extension.pieces, -1)
    return torch.cat([base, fresh.to(base.dtype), padding.to(base.dtype)])


def compare_tokenizers(base: str | Path, tokenizer: str | Path, base_rows: int) -> ModelExtension:
    """Find what `tokenizer` adds to the tokenizer in the directory `base`, a model of `base_rows` rows.

    Raises:
        UserError: there is no tokenizer, `tokenizer` is not a SentencePiece model, or it does not extend
            the base's.
    """
    old, new = open_tokenizer(base), open_tokenizer(tokenizer)
    if new.model is None:
        fix = "give one with tokenizer.model, as `rewarm vocab extend` writes"
        raise UserError("is not a SentencePiece model, which new rows need", file=new.path, fix=fix)
    grown = whole_model(new)
    before, after = (_pieces(old), grown.pieces) if old.model else (old.pieces, new.pieces)
    for number, (was, now) in enumerate(zip(before, after, strict=False)):
        if was != now:
            what = f"does not extend the base's: its piece {number} is {_shown(now)}, not {_shown(was)}"
            fix = "make an extension: rewarm vocab extend --base BASE --add TOKENIZER --out DIR"
            raise UserError(what, field="--tokenizer", value=str(tokenizer), fix=fix)
    if new.size <= old.size:
        what = f"adds nothing to the base's {old.size} pieces"
        raise UserError(what, field="--tokenizer", value=str(tokenizer), fix="train with the base itself")
    if base_rows < old.size:
        what = f"has {base_rows} embedding rows for its tokenizer's {old.size} pieces"
        raise UserError(what, field="--base", value=str(base), fix="copy the model again")
    return ModelExtension(old.size, new.size, -(-new.size // MULTIPLE) * MULTIPLE, _splits(grown, old.size))


def _pieces(tokenizer: Tokenizer) -> list[Any]:
    """A SentencePiece tokenizer's pieces; added tokens as an extension has them, as control pieces."""
    assert tokenizer.model is not None
    kind = type(tokenizer.model.pieces[0])
    added = [kind(piece=token.content, score=0.0, type=kind.CONTROL) for token in tokenizer.added]
    return [*tokenizer.model.pieces, *added]


def _shown(piece: Any) -> str:
    """Show a piece with its score, if that is known: an extension must keep the base's scores too."""
    return repr(piece) if isinstance(piece, str) else f"{piece.piece!r} (score {piece.score:g})"


def _splits(model: Any, base_pieces: int) -> list[list[int]]:
    """Encode each new piece's text with the base's pieces, as inside a line: without a dummy prefix."""
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.pieces[base_pieces:]
    bare.normalizer_spec.add_dummy_prefix = False
    bare.normalizer_spec.remove_extra_whitespaces = False
    added = model.pieces[base_pieces:]
    texts = [piece.piece.replace(SPACE, " ") if piece.type == piece.NORMAL else "" for piece in added]
    splits: list[list[int]] = _processor(bare).encode(texts)
    return splits


def _processor(model: Any) -> sentencepiece.SentencePieceProcessor:
    """Make an encoder for a parsed SentencePiece model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def open_encoder(directory: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Open the encoder of the model in a directory.

    Raises:
        UserError: its tokenizer is not a SentencePiece model.
    """
    tokenizer = open_tokenizer(directory)
    if tokenizer.model is None:
        fix = "remove --text, or add its tokenizer.model"
        raise UserError(
            "is not a SentencePiece model, so --text cannot be encoded", file=tokenizer.path, fix=fix
        )
    return _processor(tokenizer.model)


def bits_per_byte(model: str | Path, text: str, window: int = 1024) -> float:
    """Measure the loss of the model in a directory on `text`, comparable across tokenizers.

    The text is read in windows of `window` tokens; each target counts once.
    """
    from transformers import AutoModelForCausalLM

    from trainer.model.loss import CausalLM

    processor = open_encoder(model)
    ids = torch.tensor([[max(processor.bos_id(), 0), *processor.encode(text)]])
    own = {"trust_remote_code": False, "use_safetensors": True}
    hf = AutoModelForCausalLM.from_pretrained(model, dtype="auto", **own).eval()
    causal = CausalLM(hf, processor.get_piece_size())
    window = min(window, hf.config.max_position_embeddings)
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, ids.shape[1] - 1, window):
            part = ids[:, start : start + window + 1]
            nats += causal(part[:, :-1], part[:, 1:])[0].item()
    return nats / math.log(2) / len(text.encode())
