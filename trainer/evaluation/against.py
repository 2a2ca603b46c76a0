"""Two models on the same text: how much one has forgotten, or learnt, against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenization.errors import UserError
from tokenization.shards.store import open_tokens
from trainer.evaluation.held_out import Score
from trainer.evaluation.offline import PREPARE, hold_tokenizer, run_document_mask, run_seq_len, score_model
from trainer.model.architecture import read_config

_LONGEST = 4096
"""The longest windows of text, unless the windows of a run were longer or `--seq-len` says so."""


@dataclass(frozen=True)
class Against:
    """The scores of a model and of its base on one text."""

    model: Score
    base: Score

    @property
    def forgetting(self) -> float:
        """Bits per byte of the model above the base's: what was forgotten of this text; below 0, learnt."""
        return self.model.bits_per_byte - self.base.bits_per_byte


def score_against(
    model: str,
    base: str,
    prefixes: Sequence[str],
    base_prefixes: Sequence[str] | None = None,
    seq_len: int | None = None,
    max_tokens: int | None = None,
) -> dict[str, Against]:
    """Score both models on each shard, in windows of one length and with one document mask.

    `base_prefixes` are shards of the same text, in the same order, of a base with another tokenizer: bits per
    byte are comparable all the same.

    Raises:
        UserError: as `score_model`; or the two lists of shards do not pair up.
    """
    if base_prefixes is not None and len(base_prefixes) != len(prefixes):
        what = f"names {len(base_prefixes)} shard(s), and --data {len(prefixes)}"
        raise UserError(what, field="--against-data", fix="give the same texts, in the same order")
    if base_prefixes is not None and max_tokens is not None:
        what = "would be different parts of the text for the two tokenizers"
        raise UserError(what, field="--max-tokens", value=max_tokens, fix="leave it out")
    length = seq_len or min(_window(one) for one in (model, base))
    mask = run_document_mask(model)
    theirs = base_prefixes or prefixes
    field, fix = "--against-data", PREPARE
    if base_prefixes is None:
        field, fix = "--data", "give the same text as shards of that tokenizer with --against-data"
    # Now, rather than after the model is scored.
    hold_tokenizer(base, {prefix: open_tokens(prefix) for prefix in theirs}, field, fix)
    own = score_model(model, prefixes, length, max_tokens, mask)
    found = score_model(base, theirs, length, max_tokens, mask, field)
    return {
        prefix: Against(own[prefix], found[other]) for prefix, other in zip(prefixes, theirs, strict=True)
    }


def _window(model: str) -> int:
    """Return the length of the windows in which a model alone is scored."""
    of_run = run_seq_len(model)
    return of_run or min(int(read_config(model).get("max_position_embeddings", _LONGEST)), _LONGEST)
