"""What a tokenizer does to texts, beside another, and whether its guarantees hold on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tables import text_table
from tokenization.text import documents
from tokenization.text.inputs import shown
from tokenization.text.streams import check_encoding
from tokenization.text.texts import Texts
from tokenization.tokenizer import byte_level, encoder, engines
from tokenization.tokenizer.files import JSON_FILE, Tokenizer, open_tokenizer
from tokenization.tokenizer.hf_json import SPACE, TokenPiece
from tokenization.tokenizer.proof import TransformersEngine
from tokenization.vocabulary.extend import unreachable
from tokenization.vocabulary.scripts import script

EXAMPLES = 5

_LINES = 4096


@dataclass
class FileFigures:
    """One file's text through one tokenizer."""

    file: str
    tokenizer: str
    lines: int = 0
    utf8_bytes: int = 0
    characters: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    """Tokens that stand for one byte of a character that is no piece."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token."""
        return self.utf8_bytes / max(self.tokens, 1)

    @property
    def characters_per_token(self) -> float:
        """Characters of text per token."""
        return self.characters / max(self.tokens, 1)

    @property
    def byte_share(self) -> float:
        """The share of tokens that are byte fallback."""
        return self.byte_tokens / max(self.tokens, 1)


@dataclass
class Check:
    """A guarantee, how many lines (or pieces) were held against it, and those that break it."""

    name: str
    guaranteed: bool
    """Whether a failure is a defect; else it is only told."""
    checked: int = 0
    failed: int = 0
    examples: list[str] = field(default_factory=list)
    skipped: str = ""
    """Why it could not be checked."""
    shown: bool = True
    """Whether failures are worth examples."""

    def hold(self, line: str, good: bool) -> None:
        """Count one line, and keep it as an example if it fails."""
        self.checked += 1
        if not good:
            self.failed += 1
            if self.shown and len(self.examples) < EXAMPLES:
                self.examples.append(line[:200])


@dataclass
class VocabularyReport:
    """What `report` found; `broken` says whether a guarantee does not hold."""

    tokenizer: str
    fingerprint: str
    pieces: int
    against: str | None
    against_pieces: int | None
    files: list[FileFigures] = field(default_factory=list)
    unused: int = 0
    """Pieces, bytes and special ones aside, that the texts do not use."""
    checks: list[Check] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Lines on the files and records that are left out."""

    @property
    def broken(self) -> bool:
        """Whether a guarantee is broken: exit code 1."""
        return any(check.guaranteed and check.failed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, ratios and verdict included."""
        derived = ("bytes_per_token", "characters_per_token", "byte_share")
        files = [
            asdict(figures) | {name: getattr(figures, name) for name in derived} for figures in self.files
        ]
        return asdict(self) | {"files": files, "broken": self.broken}

    def to_text(self) -> str:
        """The same for a reader: a table, then the checks with examples."""
        lines = [f"{self.tokenizer}: {self.pieces:,} pieces, {self.unused:,} of them unused on these texts"]
        if self.against is not None:
            lines.append(f"against {self.against}: {self.against_pieces:,} pieces")
        head = ("file", "tokenizer", "lines", "MB", "tokens", "bytes/token", "chars/token", "byte fallback")
        rows = [
            (
                figures.file,
                "this" if figures.tokenizer == self.tokenizer else "against",
                f"{figures.lines:,}",
                f"{figures.utf8_bytes / 1e6:.2f}",
                f"{figures.tokens:,}",
                f"{figures.bytes_per_token:.3f}",
                f"{figures.characters_per_token:.3f}",
                f"{figures.byte_share:.3%}",
            )
            for figures in self.files
        ]
        lines += ["", text_table(head, rows, "<<>>>>>>"), "", *self.left_out]
        for check in self.checks:
            verdict = check.skipped or f"{check.failed:,} of {check.checked:,}"
            mark = (
                "–"
                if check.skipped
                else "ok"
                if not check.failed
                else "BROKEN"
                if check.guaranteed
                else "note"
            )
            lines.append(f"{mark:<7}{check.name}: {verdict}")
            lines += [f"         {example!r}" for example in check.examples]
        return "\n".join(lines)


def report_vocabulary(
    tokenizer: str | Path,
    texts: Sequence[str | Path],
    *,
    against: str | Path | None = None,
    text_field: str = "text",
    encoding: str = "utf-8",
    max_lines: int | None = None,
) -> VocabularyReport:
    """Hold `tokenizer` against its guarantees on the lines of `texts`, and beside `against` if given.

    Guaranteed, so that a failure breaks the report: a line decodes to itself (a line with U+2581 aside,
    which is SentencePiece's own space); SentencePiece, `tokenizer.json` and the fast encoder give the same
    ids; and, if `tokenizer` extends `against`, the base's pieces keep ids and scores, and every line without
    a character of an added piece keeps its ids. At most `max_lines` lines of each file are read.

    Raises:
        UserError: a tokenizer or a text is missing, or there is no line.
    """
    opened = open_tokenizer(tokenizer)
    other = open_tokenizer(against) if against is not None else None
    result = VocabularyReport(
        str(tokenizer),
        opened.fingerprint,
        opened.size,
        str(against) if against is not None else None,
        other.size if other is not None else None,
    )
    subject = _Subject(opened, other)
    found = Texts(texts, documents.DocumentFormat(text_field, "lines", check_encoding(encoding)))
    for path in found.files:
        mine = FileFigures(shown(path), str(tokenizer))
        theirs = FileFigures(shown(path), str(against)) if other is not None else None
        for some in _batches(_lines(found.read(path)), max_lines):
            subject.take(some, mine, theirs)
        result.files += [mine] if theirs is None else [mine, theirs]
    if not any(figures.lines for figures in result.files):
        raise UserError("has no line of text", file=", ".join(map(str, texts)), fix="is --text-field right?")
    result.left_out = found.notes()
    result.unused = subject.unused()
    result.checks = [*subject.checks, *_of_pieces(opened, other)]
    return result


class _Subject:
    """The engines of the tokenizers under report, and what they have shown so far."""

    def __init__(self, tokenizer: Tokenizer, other: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._truth = encoder.reference(tokenizer)
        self._other = encoder.reference(other) if other is not None else None
        self._decode = _decoder(tokenizer)
        self._used = np.zeros(tokenizer.size, dtype=bool)
        self._bytes = _byte_ids(tokenizer)
        self._other_bytes = _byte_ids(other) if other is not None else None
        self._added = _added_characters(tokenizer, other) if other is not None else frozenset()
        self._round_trip = Check("lines, those with U+2581 aside, that do not decode to themselves", True)
        self._changed = Check("lines without an added character whose ids differ from the base's", True)
        mixed = "lines with an added character whose ids differ from the base's, as they may"
        self._mixed = Check(mixed, False, shown=False)
        self._engines = list(_engines(tokenizer, self._truth))
        extends = [self._changed, self._mixed] if other is not None else []
        if other is not None and not _extends(tokenizer, other):
            self._changed.name, self._changed.guaranteed = "lines whose ids differ from the other's", False
            extends = [self._changed]
        self.checks = [self._round_trip, *(check for check, _ in self._engines), *extends]

    def take(self, lines: list[str], mine: FileFigures, theirs: FileFigures | None) -> None:
        """Count some lines of one file."""
        ids, lengths = self._truth.encode(lines)
        self._used[ids] = True
        _count(mine, lines, ids, self._bytes)
        rows = engines.split((ids, lengths))
        for line, row in zip(lines, rows, strict=True):
            if SPACE not in line:
                self._round_trip.hold(line, self._decode(row.tolist()) == line)
        for check, engine in self._engines:
            if engine is not None:
                for line, row, got in zip(lines, rows, engines.split(engine.encode(lines)), strict=True):
                    check.hold(line, np.array_equal(row, got))
        if self._other is not None and theirs is not None and self._other_bytes is not None:
            encoded = self._other.encode(lines)
            _count(theirs, lines, encoded[0], self._other_bytes)
            for line, row, got in zip(lines, rows, engines.split(encoded), strict=True):
                mixed = self._mixed in self.checks and not self._added.isdisjoint(line)
                (self._mixed if mixed else self._changed).hold(line, np.array_equal(row, got))

    def unused(self) -> int:
        """Normal pieces that no line has used."""
        special = self._bytes | ~_normal(self._tokenizer)
        return int((~self._used & ~special).sum())


def _count(figures: FileFigures, lines: list[str], ids: np.ndarray, bytes_: np.ndarray) -> None:
    figures.lines += len(lines)
    figures.utf8_bytes += sum(len(line.encode()) for line in lines)
    figures.characters += sum(map(len, lines))
    figures.tokens += ids.size
    figures.byte_tokens += int(bytes_[ids].sum())


def _engines(
    tokenizer: Tokenizer, truth: engines.EncodingEngine
) -> Iterator[tuple[Check, engines.EncodingEngine | None]]:
    """`transformers` on the directory as it is, and the fast encoder, each with its check."""
    name = "lines where {} is not " + truth.name
    through = Check(name.format(f"{JSON_FILE} through transformers"), True)
    loaded: engines.EncodingEngine | None = None
    if not _is_utf8(str(tokenizer.path.parent)):
        through.skipped = "transformers opens no folder whose name is not UTF-8"
    elif tokenizer.path.parent.joinpath(JSON_FILE).is_file():
        try:
            loaded = TransformersEngine(tokenizer.path.parent)
        except Exception as error:  # whatever a user's AutoTokenizer would raise breaks the guarantee
            through.hold(f"{type(error).__name__}: {error}", False)
    else:
        through.skipped = f"there is no {JSON_FILE} beside {tokenizer.path}"
    yield through, loaded
    fast = Check(name.format("the fast encoder (gigatoken)"), True)
    try:
        yield fast, encoder.create_engine(tokenizer, "gigatoken")
    except Exception as error:  # it may fail in any way that its own library knows
        why = encoder.readable(error)
        fast.skipped = f"gigatoken is not used ({why}); `data prepare` uses {truth.name}"
        yield fast, None


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _of_pieces(tokenizer: Tokenizer, other: Tokenizer | None) -> Iterator[Check]:
    """The checks that need no text."""
    reached = Check("pieces that no text can give", False)
    if tokenizer.model is not None and tokenizer.model.trainer_spec.model_type == spm.TrainerSpec.BPE:
        lost = set(unreachable(tokenizer.model))
        for piece in tokenizer.pieces:
            reached.hold(piece, piece not in lost)
    else:
        reached.skipped = "only known of a SentencePiece BPE model"
    yield reached
    if byte_level.is_byte_level(tokenizer):
        whole = Check("bytes that no piece stands for, so that they vanish from texts", False)
        missing = byte_level.missing_bytes(tokenizer)
        whole.checked = 256 - len(byte_level.NOT_IN_UTF8)
        whole.failed = len(missing)
        whole.examples = [", ".join(map(byte_level.named, missing))] if missing else []
        yield whole
    if other is None or not _extends(tokenizer, other) or tokenizer.model is None or other.model is None:
        return
    kept = Check("pieces of the base whose score or kind has changed", True)
    for mine, theirs in zip(tokenizer.model.pieces, other.model.pieces, strict=False):
        kept.hold(theirs.piece, (mine.score, mine.type) == (theirs.score, theirs.type))
    yield kept


def _extends(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    return tokenizer.pieces[: other.size] == other.pieces


def _added_characters(tokenizer: Tokenizer, other: Tokenizer) -> frozenset[str]:
    """Characters of added pieces which the rule of `extend` has rooted in a script of their own.

    A sign that English may use too, such as a curly quote, does not excuse a change.
    """
    added = "".join(tokenizer.pieces[other.size :])
    return frozenset(char for char in set(added) if script(char) != "common" and not char.isascii())


def _normal(tokenizer: Tokenizer) -> np.ndarray:
    added = {token.content for token in tokenizer.added_vocabulary}
    if tokenizer.model is not None:
        kinds = [piece.type == TokenPiece.NORMAL for piece in tokenizer.model.pieces]
        return np.array([*kinds, *(False for _ in tokenizer.added)])
    return np.array([piece not in added for piece in tokenizer.pieces])


def _byte_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Which ids stand for single bytes of characters that are not pieces."""
    return np.array(byte_level.byte_pieces(tokenizer))


def _decoder(tokenizer: Tokenizer) -> Any:
    if tokenizer.model is not None:
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model.SerializeToString()).decode
    import tokenizers

    return tokenizers.Tokenizer.from_str(tokenizer.path.read_text(encoding="utf-8")).decode


def _lines(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield from (line for line in text.split("\n") if line)


def _batches(lines: Iterator[str], most: int | None) -> Iterator[list[str]]:
    lines = islice(lines, most)
    while some := list(islice(lines, _LINES)):
        yield some
