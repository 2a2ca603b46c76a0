"""Extend a base vocabulary by pieces of another, so that no text of the base language changes its ids.

Why English cannot change: an added piece has at least one character of an allowed script and no ASCII letter,
digit or punctuation, and its score is below every score of the base. A text without such characters contains
no added piece; in any other text the merges of the base still come first.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.disk import refuse_existing, whole_directory
from tokenization.errors import UserError, UserErrors, did_you_mean
from tokenization.tokenizer import hf_json
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.encoder import disagreements
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.hard_lines import HARD_LINES
from tokenization.tokenizer.hf_json import TokenPiece
from tokenization.tokenizer.settings import carried
from tokenization.vocabulary.scripts import SCRIPT_NAMES, script

SENTINEL = -1e8
"""Scores below it mark pieces without a rank, such as LLaMA's runs of spaces at −1e9."""

_ASCII = frozenset(string.ascii_letters + string.digits + string.punctuation)


@dataclass(frozen=True)
class VocabularyExtension:
    """The result of `extend_vocabulary`: how many pieces were added, how many were left out and why."""

    out: str
    fingerprint: str
    base_fingerprint: str
    add_fingerprint: str
    base_pieces: int
    added: int
    left_out: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the same as lines of text."""
        lines = [
            f"{self.base_pieces:,} + {self.added:,} = {self.base_pieces + self.added:,} pieces in {self.out}"
        ]
        lines += [f"left out {count:,}: {why}" for why, count in self.left_out.items()]
        return "\n".join([*lines, *self.notes, f"fingerprint {self.fingerprint}"])


def extend_vocabulary(
    base: str | Path,
    add: str | Path,
    out: str | Path,
    *,
    max_pieces: int | None = None,
    allow_scripts: Sequence[str] = ("han",),
    overwrite: bool = False,
) -> VocabularyExtension:
    """Write to `out` the tokenizer `base` with the same ids and scores, followed by the pieces of `add`.

    Pieces are added in `add`'s order; if `max_pieces` limits them, characters come before words. A piece is
    left out if the base has it, if it could change English or a script that is not allowed, or if no sequence
    of merges reaches it. `extension.json` in `out` lists every piece with its reason. Before anything is
    written, the new `tokenizer.json` is compared with SentencePiece. The base's added tokens keep their ids,
    and its chat template and other settings are copied.

    Raises:
        UserError: a tokenizer is of a kind that cannot be extended exactly; a script is unknown; `out` holds
            something, and `overwrite` is not given; no piece of `add` can be added.
    """
    _check_arguments(base, add, out, max_pieces, allow_scripts)
    refuse_existing(out, overwrite=overwrite)
    base_tokenizer, add_tokenizer = open_tokenizer(base), open_tokenizer(add)
    notes: list[str] = []
    base_model = _base_model(base_tokenizer, notes)
    offered = _in_merge_order(_offered_model(add_tokenizer), notes)
    chosen, left_out = choose_pieces(base_model, offered, allow_scripts, max_pieces)
    if not chosen:
        reasons = "; ".join(f"{len(pieces):,}: {why}" for why, pieces in left_out.items())
        fix = "give the tokenizer with the new pieces, and name their script with --allow-scripts"
        raise UserError(f"adds no piece to {base} ({reasons})", field="--add", value=str(add), fix=fix)
    model = append(base_model, chosen, base_tokenizer.path)
    _prove(base_model, model, base_tokenizer.path)
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    settings = carried(base_tokenizer, ids.get)
    notes += settings.left_out
    grown = Tokenizer(Path(out), model, None, {})
    counted = {why: len(pieces) for why, pieces in left_out.items()}
    result = VocabularyExtension(
        str(out),
        grown.fingerprint,
        base_tokenizer.fingerprint,
        add_tokenizer.fingerprint,
        len(base_model.pieces),
        len(chosen),
        counted,
        notes,
    )
    listed = result.to_json() | {"version": 1, "allow_scripts": sorted(allow_scripts), "pieces": chosen}
    del listed["out"]
    extra = {"extension.json": listed | {"left_out": left_out}}
    with whole_directory(out, overwrite=overwrite) as draft:
        write_directory(draft, model, extra, settings=settings)
    return result


def choose_pieces(
    base: spm.ModelProto, offered: Sequence[str], allow_scripts: Iterable[str], max_pieces: int | None
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the pieces of `offered` to add, in order, and those left out, by reason.

    Leaving out a piece that is never reached changes no encoding. Leaving out one due to `max_pieces` may
    remove a part of another piece, so the rest is tested until all of it is reached.
    """
    left_out: dict[str, list[str]] = {}
    known = {piece.piece for piece in base.pieces}
    fits: list[str] = []
    for piece in offered:
        why = "already in the base" if piece in known else _objection(piece, frozenset(allow_scripts))
        if why is None:
            fits.append(piece)
        else:
            left_out.setdefault(why, []).append(piece)
    singles = known | {piece for piece in fits if len(piece) == 1}
    spelled = [piece for piece in fits if set(piece) <= singles]
    _leave(left_out, "a character of it is not a piece", fits, spelled)
    stands = _reachable(base, spelled)
    _leave(left_out, "no sequence of merges reaches it", spelled, stands)
    if max_pieces is not None and len(stands) > max_pieces:
        within = set(sorted(stands, key=lambda piece: len(piece) > 1)[:max_pieces])
        kept = [piece for piece in stands if piece in within]
        _leave(left_out, f"beyond --max-pieces {max_pieces}", stands, kept)
        while (stands := _reachable(base, kept)) != kept:
            _leave(left_out, "no sequence of merges reaches it", kept, stands)
            kept = stands
    return stands, left_out


def append(base: spm.ModelProto, pieces: Sequence[str], file: object = None) -> spm.ModelProto:
    """Return a copy of `base` with `pieces` after its own, whose distinct scores are below all of the base.

    Raises:
        UserError: float32 has no distinct scores below those of the base.
    """
    ranks = [
        piece.score for piece in base.pieces if piece.type == TokenPiece.NORMAL and piece.score > SENTINEL
    ]
    lowest = np.floor(min(ranks, default=0.0))
    scores = (lowest - 1 - np.arange(len(pieces))).astype(np.float32)
    if scores.size and (scores[0] >= lowest or (np.diff(scores) >= 0).any() or scores[-1] <= SENTINEL):
        raise UserError(
            f"has the score {lowest:g}, below which float32 has too few numbers for {len(pieces)} pieces",
            file=file,
            fix="renumber the base's scores",
        )
    model = spm.ModelProto()
    model.CopyFrom(base)
    for piece, score in zip(pieces, scores.tolist(), strict=True):
        model.pieces.add(piece=piece, score=score, type=TokenPiece.NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model


def unreachable(model: spm.ModelProto) -> list[str]:
    """Return the normal pieces that no text's encoding contains.

    BPE merges the span of a piece as it merges that span alone, so a piece is reachable if and only if its
    text is encoded as this piece. The dummy prefix is switched off and spaces at the ends are kept, since a
    piece may be anywhere in a text; but if a tokenizer merges several spaces into one, no text has two.
    """
    bare = spm.ModelProto()
    bare.CopyFrom(model)
    bare.normalizer_spec.add_dummy_prefix = bare.normalizer_spec.remove_extra_whitespaces = False
    one_space = model.normalizer_spec.remove_extra_whitespaces
    processor = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())
    normal = [
        (index, piece.piece) for index, piece in enumerate(model.pieces) if piece.type == TokenPiece.NORMAL
    ]
    encoded = processor.encode([piece for _, piece in normal])
    return [
        piece
        for (index, piece), ids in zip(normal, encoded, strict=True)
        if ids != [index] or (one_space and 2 * hf_json.SPACE in piece)
    ]


def _reachable(base: spm.ModelProto, pieces: list[str]) -> list[str]:
    gone = set(unreachable(append(base, pieces)))
    return [piece for piece in pieces if piece not in gone]


def _leave(left_out: dict[str, list[str]], why: str, before: list[str], after: list[str]) -> None:
    kept = set(after)
    if gone := [piece for piece in before if piece not in kept]:
        left_out.setdefault(why, []).extend(gone)


def _objection(piece: str, allowed: frozenset[str]) -> str | None:
    """Return why a new piece is not allowed, or None: it needs a character of an allowed script."""
    if not _ASCII.isdisjoint(piece):
        return "has ASCII letters, digits or punctuation"
    scripts = {script(char) for char in piece}
    foreign = scripts - allowed - {"common"}
    if foreign:
        return f"has characters of a script that is not allowed ({', '.join(sorted(foreign))})"
    return None if scripts & allowed else "has only characters that English may use"


def _check_arguments(
    base: str | Path, add: str | Path, out: str | Path, max_pieces: int | None, allow_scripts: Sequence[str]
) -> None:
    problems = [
        UserError(
            "is not a known script", field="--allow-scripts", value=name, fix=did_you_mean(name, SCRIPT_NAMES)
        )
        for name in allow_scripts
        if name not in SCRIPT_NAMES
    ]
    if not allow_scripts:
        problems.append(UserError("has no script", field="--allow-scripts"))
    if max_pieces is not None and max_pieces < 1:
        problems.append(UserError("is not at least 1", field="--max-pieces", value=max_pieces))
    if Path(out).resolve() in (Path(base).resolve(), Path(add).resolve()):
        problems.append(UserError("is one of the tokenizers that are read", field="--out", value=str(out)))
    if problems:
        raise UserErrors(problems)


def _base_model(tokenizer: Tokenizer, notes: list[str]) -> spm.ModelProto:
    """Return the base as a SentencePiece model, rebuilt from `tokenizer.json` if necessary."""
    if tokenizer.model is None:
        tokenizer_json = dict(tokenizer.json or {})
        model = hf_json.to_model(tokenizer_json, tokenizer.path)
        other = disagreements(model, HARD_LINES, tokenizer_json)
        same = (
            f"but on {len(other)} hard lines, such as {other[0][:40]!r}," if other else "on every hard line,"
        )
        notes.append(
            f"{tokenizer.path}: no tokenizer.model; one was rebuilt from the merges: its ids are the same"
            f" {same} its scores are new, and text is prepared as SentencePiece prepares it"
        )
    else:
        model = whole_model(tokenizer)
    rules = model.normalizer_spec
    kinds = {piece.type for piece in model.pieces}
    complaints = [
        (model.trainer_spec.model_type != spm.TrainerSpec.BPE, "is not a BPE model"),
        (not model.trainer_spec.byte_fallback, "has no byte fallback"),
        (
            bool(rules.precompiled_charsmap) or rules.remove_extra_whitespaces,
            "changes text before it is encoded",
        ),
        (
            not rules.escape_whitespaces or model.trainer_spec.treat_whitespace_as_suffix,
            "marks spaces in another way",
        ),
        (bool(kinds & {TokenPiece.USER_DEFINED, TokenPiece.UNUSED}), "has user-defined or unused pieces"),
    ]
    if tied := _tied(model):
        complaints.append(
            (True, f"gives {tied[0]!r} and {tied[1]!r} one score, so the position decides which merges")
        )
    for wrong, why in complaints:
        if wrong:
            raise UserError(
                f"{why}: a tokenizer.json might give other ids",
                file=tokenizer.path,
                field="--base",
                fix="use a LLaMA-style SentencePiece model",
            )
    return model


def _tied(model: spm.ModelProto) -> list[str]:
    """Return two merged pieces of one score, if any; LLaMA's runs of spaces may share theirs."""
    holders: dict[float, str] = {}
    for piece in model.pieces:
        merged = piece.type == TokenPiece.NORMAL and len(piece.piece) > 1
        if merged and set(piece.piece) != {hf_json.SPACE}:
            if piece.score in holders:
                return [holders[piece.score], piece.piece]
            holders[piece.score] = piece.piece
    return []


def whole_model(tokenizer: Tokenizer) -> spm.ModelProto:
    """Return the SentencePiece model of a tokenizer, with the added tokens of its directory as pieces.

    They become control pieces under the ids that they have, and EOS and BOS are those of the directory.

    Raises:
        UserError: one of them is matched in texts, which a control piece is not.
    """
    assert tokenizer.model is not None
    model = spm.ModelProto()
    model.CopyFrom(tokenizer.model)
    if found := [token for token in tokenizer.added if not token.special]:
        names = ", ".join(token.content for token in found[:5])
        raise UserError(
            f"has {names}, which tokenizer.model does not have, and which are matched in texts",
            file=tokenizer.path.parent / found[0].file,
            fix='mark such tokens as "special": true in added_tokens_decoder of tokenizer_config.json, or'
            " name the tokenizer.model file itself, which has no such tokens",
        )
    for token in tokenizer.added:
        model.pieces.add(piece=token.content, score=0.0, type=TokenPiece.CONTROL)
    spec = model.trainer_spec
    spec.vocab_size = len(model.pieces)
    for name in ("eos", "bos"):
        index = tokenizer.special_id(name)
        setattr(spec, f"{name}_id", -1 if index is None else index)
    return model


def _offered_model(tokenizer: Tokenizer) -> spm.ModelProto:
    if tokenizer.model is not None:
        return tokenizer.model
    return hf_json.to_model(dict(tokenizer.json or {}), tokenizer.path)


def _in_merge_order(model: spm.ModelProto, notes: list[str]) -> list[str]:
    """Return the normal pieces in the order in which they should merge.

    A BPE model has this order. A Unigram model has log probabilities: likelier pieces come first, but no
    piece comes before the parts of its best split, since merges need them.
    """
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == TokenPiece.NORMAL}
    if model.trainer_spec.model_type == spm.TrainerSpec.BPE:
        return list(normal)
    if model.trainer_spec.model_type != spm.TrainerSpec.UNIGRAM:
        raise UserError(
            "is neither BPE nor Unigram", field="--add", fix="train one with `rewarm vocab train`"
        )
    notes.append("--add is a Unigram model: its pieces were put in an order of merges, likelier ones first")
    ranks: dict[str, float] = {}
    for piece in sorted(normal, key=len):
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        parts = [min(ranks[left], ranks[right]) for left, right in splits if left in ranks and right in ranks]
        ranks[piece] = min([normal[piece], max(parts)] if parts else [normal[piece]])
    return sorted(normal, key=lambda piece: (-ranks[piece], len(piece)))


def _prove(base: spm.ModelProto, grown: spm.ModelProto, file: object) -> None:
    """Compare the new `tokenizer.json` with SentencePiece on hard lines and on the new pieces.

    Raises:
        UserError: they differ, so nothing is written.
    """
    pieces = [piece.piece for piece in grown.pieces[len(base.pieces) :]]
    runs = ["".join(pair).replace(hf_json.SPACE, " ") for pair in itertools.pairwise(pieces)]
    if broken := disagreements(grown, [*HARD_LINES, *runs]):
        raise UserError(
            f"would not give the same ids through tokenizer.json, as on {broken[0][:60]!r}",
            file=file,
            fix="use another base, or report this as a bug",
        )
