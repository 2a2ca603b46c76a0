"""A base vocabulary grows by the pieces of another, and no text of the base language changes its ids.

Why English cannot change: an added piece holds at least one character of an allowed script and no ASCII
letter, digit or punctuation, and its score lies below every score of the base. In a text without such
characters no added piece can come about; in any other the base's own merges come first, as they always did.
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

from tokenization import tokenizer_json
from tokenization.directories import refuse_existing, whole_directory, write_directory
from tokenization.encoder import HARD_LINES, disagreements
from tokenization.errors import Problems, UserError, nearest
from tokenization.scripts import NAMES, script
from tokenization.settings import carried
from tokenization.tokenizer_files import Piece, Tokenizer, open_tokenizer

SENTINEL = -1e8
"""Scores below it mark pieces of no rank, such as LLaMA's runs of spaces at −1e9."""
_ASCII = frozenset(string.ascii_letters + string.digits + string.punctuation)


@dataclass(frozen=True)
class Extension:
    """What `extend` made: how many pieces came in, how many stayed out and why."""

    out: str
    fingerprint: str
    base_fingerprint: str
    add_fingerprint: str
    base_pieces: int
    added: int
    left_out: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """The same for a reader."""
        lines = [
            f"{self.base_pieces:,} + {self.added:,} = {self.base_pieces + self.added:,} pieces in {self.out}"
        ]
        lines += [f"left out {count:,}: {why}" for why, count in self.left_out.items()]
        return "\n".join([*lines, *self.notes, f"fingerprint {self.fingerprint}"])


def extend(
    base: str | Path,
    add: str | Path,
    out: str | Path,
    *,
    max_pieces: int | None = None,
    allow_scripts: Sequence[str] = ("han",),
    overwrite: bool = False,
) -> Extension:
    """Write to the directory `out` the tokenizer `base`, ids and scores kept, then the pieces of `add`.

    Pieces come in `add`'s order, characters before words where `max_pieces` bounds how many. A piece stays
    out when the base has it, when it could touch English or another script than those allowed, or when no
    sequence of merges reaches it. `extension.json` in `out` lists every piece with its reason. Before
    anything is written, the new `tokenizer.json` is held against SentencePiece. The base's added tokens keep
    their ids, and its chat template and other settings are handed down.

    Raises:
        UserError: a tokenizer is of a kind that cannot be extended exactly; a script is unknown; `out` holds
            something, and `overwrite` is not given.
    """
    _check_arguments(base, add, out, max_pieces, allow_scripts)
    refuse_existing(out, overwrite=overwrite)
    base_tokenizer, add_tokenizer = open_tokenizer(base), open_tokenizer(add)
    notes: list[str] = []
    base_model = _base_model(base_tokenizer, notes)
    offered = _in_merge_order(_offered_model(add_tokenizer), notes)
    chosen, left_out = choose(base_model, offered, allow_scripts, max_pieces)
    model = append(base_model, chosen, base_tokenizer.path)
    _prove(base_model, model, base_tokenizer.path)
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    settings = carried(base_tokenizer, ids.get)
    notes += settings.left_out
    grown = Tokenizer(Path(out), model, None, {})
    counted = {why: len(pieces) for why, pieces in left_out.items()}
    result = Extension(
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


def choose(
    base: spm.ModelProto, offered: Sequence[str], allow_scripts: Iterable[str], max_pieces: int | None
) -> tuple[list[str], dict[str, list[str]]]:
    """The pieces of `offered` to add, in order, and those left out by reason.

    Leaving out a piece that is never reached changes no encoding; leaving out one for want of room may take
    a part away from another, so what remains is tested until it stands.
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
    _leave(left_out, "a character of it is no piece", fits, spelled)
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
    """A copy of `base` with `pieces` after its own, each with its own score below every one of the base.

    Raises:
        UserError: the base's scores leave float32 no room for distinct ones.
    """
    ranks = [piece.score for piece in base.pieces if piece.type == Piece.NORMAL and piece.score > SENTINEL]
    lowest = np.floor(min(ranks, default=0.0))
    scores = (lowest - 1 - np.arange(len(pieces))).astype(np.float32)
    if scores.size and (scores[0] >= lowest or (np.diff(scores) >= 0).any() or scores[-1] <= SENTINEL):
        raise UserError(
            f"reaches down to the score {lowest:g}, below which float32 cannot tell {len(pieces)} more apart",
            file=file,
            mend="renumber the base's scores",
        )
    model = spm.ModelProto()
    model.CopyFrom(base)
    for piece, score in zip(pieces, scores.tolist(), strict=True):
        model.pieces.add(piece=piece, score=score, type=Piece.NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model


def unreachable(model: spm.ModelProto) -> list[str]:
    """The normal pieces that no text's encoding contains.

    Within the span of a piece BPE merges just as it does in that span alone, so a piece is reachable if and
    only if its own text is encoded as it. The dummy prefix is left away, and spaces at the ends are kept,
    since a piece may stand anywhere; but where a tokenizer makes one space of several, no text has two.
    """
    bare = spm.ModelProto()
    bare.CopyFrom(model)
    bare.normalizer_spec.add_dummy_prefix = bare.normalizer_spec.remove_extra_whitespaces = False
    one_space = model.normalizer_spec.remove_extra_whitespaces
    processor = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())
    normal = [(index, piece.piece) for index, piece in enumerate(model.pieces) if piece.type == Piece.NORMAL]
    encoded = processor.encode([piece for _, piece in normal])
    return [
        piece
        for (index, piece), ids in zip(normal, encoded, strict=True)
        if ids != [index] or (one_space and 2 * tokenizer_json.SPACE in piece)
    ]


def _reachable(base: spm.ModelProto, pieces: list[str]) -> list[str]:
    gone = set(unreachable(append(base, pieces)))
    return [piece for piece in pieces if piece not in gone]


def _leave(left_out: dict[str, list[str]], why: str, before: list[str], after: list[str]) -> None:
    kept = set(after)
    if gone := [piece for piece in before if piece not in kept]:
        left_out.setdefault(why, []).extend(gone)


def _objection(piece: str, allowed: frozenset[str]) -> str | None:
    """Why a new piece may not come in, or None: it must be rooted in an allowed script."""
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
        UserError("is no known script", field="--allow-scripts", value=name, mend=nearest(name, NAMES))
        for name in allow_scripts
        if name not in NAMES
    ]
    if not allow_scripts:
        problems.append(UserError("names no script", field="--allow-scripts"))
    if max_pieces is not None and max_pieces < 1:
        problems.append(UserError("is not at least 1", field="--max-pieces", value=max_pieces))
    if Path(out).resolve() in (Path(base).resolve(), Path(add).resolve()):
        problems.append(UserError("is one of the tokenizers read", field="--out", value=str(out)))
    if problems:
        raise Problems(problems)


def _base_model(tokenizer: Tokenizer, notes: list[str]) -> spm.ModelProto:
    """The base as a SentencePiece model, rebuilt from `tokenizer.json` if need be."""
    if tokenizer.model is None:
        held = dict(tokenizer.json or {})
        model = tokenizer_json.to_model(held, tokenizer.path)
        other = disagreements(model, HARD_LINES, held)
        same = (
            f"but on {len(other)} hard lines, such as {other[0][:40]!r}," if other else "on every hard line,"
        )
        notes.append(
            f"{tokenizer.path}: no tokenizer.model; one was rebuilt from the merges: its ids are the same"
            f" {same} its scores are counted anew, and text is prepared as SentencePiece does"
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
            "changes text before encoding it",
        ),
        (
            not rules.escape_whitespaces or model.trainer_spec.treat_whitespace_as_suffix,
            "marks spaces another way",
        ),
        (bool(kinds & {Piece.USER_DEFINED, Piece.UNUSED}), "has user-defined or unused pieces"),
    ]
    if tied := _tied(model):
        complaints.append(
            (True, f"gives {tied[0]!r} and {tied[1]!r} one score, so the place decides which merges")
        )
    for wrong, why in complaints:
        if wrong:
            raise UserError(
                f"{why}: no tokenizer.json is sure to equal it",
                file=tokenizer.path,
                field="--base",
                mend="take a LLaMA-style SentencePiece model",
            )
    return model


def _tied(model: spm.ModelProto) -> list[str]:
    """Two merged pieces of one score; LLaMA's runs of spaces share theirs without harm."""
    holders: dict[float, str] = {}
    for piece in model.pieces:
        merged = piece.type == Piece.NORMAL and len(piece.piece) > 1
        if merged and set(piece.piece) != {tokenizer_json.SPACE}:
            if piece.score in holders:
                return [holders[piece.score], piece.piece]
            holders[piece.score] = piece.piece
    return []


def whole_model(tokenizer: Tokenizer) -> spm.ModelProto:
    """The SentencePiece model of a tokenizer, with the added tokens of its directory as pieces of their own.

    They become control pieces under the ids that they have, and EOS and BOS are those of the directory.

    Raises:
        UserError: one is to be found in texts, which a control piece is not.
    """
    assert tokenizer.model is not None
    model = spm.ModelProto()
    model.CopyFrom(tokenizer.model)
    if found := [token for token in tokenizer.added if not token.special]:
        names = ", ".join(token.content for token in found[:5])
        raise UserError(
            f"has {names}, which tokenizer.model does not have, and which would be found in texts",
            file=tokenizer.path.parent / found[0].file,
            mend='mark such tokens as "special": true in added_tokens_decoder of tokenizer_config.json, or'
            " give the tokenizer.model file itself to go on without them",
        )
    for token in tokenizer.added:
        model.pieces.add(piece=token.content, score=0.0, type=Piece.CONTROL)
    spec = model.trainer_spec
    spec.vocab_size = len(model.pieces)
    for name in ("eos", "bos"):
        index = tokenizer.special_id(name)
        setattr(spec, f"{name}_id", -1 if index is None else index)
    return model


def _offered_model(tokenizer: Tokenizer) -> spm.ModelProto:
    if tokenizer.model is not None:
        return tokenizer.model
    return tokenizer_json.to_model(dict(tokenizer.json or {}), tokenizer.path)


def _in_merge_order(model: spm.ModelProto, notes: list[str]) -> list[str]:
    """The normal pieces in the order in which they should merge.

    A BPE model's own order is that. A Unigram model has log probabilities instead: likelier pieces first,
    but none before the parts of its best split, for without them no merge reaches it.
    """
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == Piece.NORMAL}
    if model.trainer_spec.model_type == spm.TrainerSpec.BPE:
        return list(normal)
    if model.trainer_spec.model_type != spm.TrainerSpec.UNIGRAM:
        raise UserError(
            "is neither BPE nor Unigram", field="--add", mend="train one with `rewarm vocab train`"
        )
    notes.append("--add is a Unigram model: its pieces were put in an order of merges, likelier ones first")
    ranks: dict[str, float] = {}
    for piece in sorted(normal, key=len):
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        parts = [min(ranks[left], ranks[right]) for left, right in splits if left in ranks and right in ranks]
        ranks[piece] = min([normal[piece], max(parts)] if parts else [normal[piece]])
    return sorted(normal, key=lambda piece: (-ranks[piece], len(piece)))


def _prove(base: spm.ModelProto, grown: spm.ModelProto, file: object) -> None:
    """Hold the product's `tokenizer.json` against SentencePiece on hard lines and on the new pieces.

    Raises:
        UserError: they differ, so nothing is written.
    """
    pieces = [piece.piece for piece in grown.pieces[len(base.pieces) :]]
    runs = ["".join(pair).replace(tokenizer_json.SPACE, " ") for pair in itertools.pairwise(pieces)]
    if broken := disagreements(grown, [*HARD_LINES, *runs]):
        raise UserError(
            f"would not give the same ids through tokenizer.json, as on {broken[0][:60]!r}",
            file=file,
            mend="take another base, or report this",
        )
