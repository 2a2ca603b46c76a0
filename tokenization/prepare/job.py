"""A job: the files and options that decide its bytes, its parts, and their counts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import xxhash

from tokenization.disk import with_ending
from tokenization.shards.format import part_prefix
from tokenization.text import documents
from tokenization.text.rejects import line
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.fingerprint import core


@dataclass
class Counts:
    """Numbers of one part or of several; `+=` adds another's."""

    documents: int = 0
    tokens: int = 0
    utf8_bytes: int = 0
    validation_documents: int = 0
    validation_tokens: int = 0
    duplicates: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    """Records that are not documents, by the reason."""
    lost: dict[str, int] = field(default_factory=dict)
    """What the tokenizer has no piece for, and how often, see `EncodedDocuments.lost`."""
    reject_files: dict[str, list[str]] = field(default_factory=dict)
    """The names of the first files that have such records, by the reason."""

    def __iadd__(self, other: Counts) -> Self:
        """Add the numbers of `other`."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.utf8_bytes += other.utf8_bytes
        self.validation_documents += other.validation_documents
        self.validation_tokens += other.validation_tokens
        self.duplicates += other.duplicates
        self.rejects = dict(Counter(self.rejects) + Counter(other.rejects))
        self.lost = dict(Counter(self.lost) + Counter(other.lost))
        self.reject_files = other.reject_files | self.reject_files
        return self


@dataclass
class PartCounts(Counts):
    """The file `PREFIX.prepared.json` of one part."""

    job: str = field(kw_only=True)
    """The identity of the job that writes the part."""
    finished: bool = False
    """Whether the shards of the part are whole; it is set last."""
    facts: dict[str, str] = field(default_factory=dict)
    """What `job` was made of, so that a difference from another job can be named."""


@dataclass(frozen=True)
class Job:
    """A corpus and the options that decide its bytes."""

    out: Path
    tokenizer: Tokenizer
    format: documents.DocumentFormat
    slices: list[documents.Slice]
    parts: int
    validation: Fraction
    dedup: bool

    @property
    def identity(self) -> str:
        """Hash of the files and their order, the tokenizer and the options: equal ones give equal bytes."""
        return _hash(self.facts)

    @property
    def earlier_identity(self) -> str:
        """The identity that earlier versions wrote, with half of the tokenizer's fingerprint."""
        stats = sorted(self._stats())
        tokenizer = core(self.tokenizer.fingerprint)
        form = {name: value for name, value in asdict(self.format).items() if name != "encoding"}
        facts = [stats, tokenizer, form, self.parts, str(self.validation), self.dedup]
        return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())

    @cached_property
    def facts(self) -> dict[str, str]:
        """Everything that decides the bytes of the parts, by its name in messages."""
        stats = self._stats()
        return {
            "the files": f"{len(stats)} {_hash(stats)}",
            "the tokenizer": self.tokenizer.fingerprint,
            "--text-field, --documents or --encoding": repr(list(asdict(self.format).values())),
            "the number of parts": str(self.parts),
            "--validation": str(self.validation),
            "--deduplicate": str(self.dedup),
        }

    def _stats(self) -> list[tuple[str, int, int]]:
        """Return each file with its size and time; a file of the hub has its revision in its path."""
        kinds = {piece.path: piece.kind for piece in self.slices}
        stats = {file: Path(file).stat() for file, kind in kinds.items() if kind != "hub"}
        return [
            (file, stats[file].st_size, stats[file].st_mtime_ns) if file in stats else (file, 0, 0)
            for file in kinds
        ]

    def part(self, index: int) -> list[documents.Slice]:
        """Return the slices of a part: neighbours, with about as many bytes as every other part."""
        return self._divided[index]

    @cached_property
    def _divided(self) -> list[list[documents.Slice]]:
        total = max(sum(piece.size for piece in self.slices), 1)
        divided: list[list[documents.Slice]] = [[] for _ in range(self.parts)]
        before = 0
        for piece in self.slices:
            middle = 2 * before + piece.size
            divided[min(middle * self.parts // (2 * total), self.parts - 1)].append(piece)
            before += piece.size
        return divided

    def prefix(self, index: int) -> Path:
        """Return the prefix of part `index`."""
        return part_prefix(self.out, index, self.parts)

    def validation_prefix(self, index: int) -> Path:
        """Return the prefix of the validation documents of part `index`."""
        return part_prefix(f"{self.out}-validation", index, self.parts)

    def counts_path(self, index: int) -> Path:
        """Return the path of the file that says whether part `index` is finished."""
        return with_ending(self.prefix(index), ".prepared.json")


def _hash(facts: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


@dataclass
class PrepareResult(Counts):
    """What `prepare` wrote, and what it left out."""

    out: str = field(kw_only=True)
    parts: int = field(kw_only=True)
    part: int | None = None
    """The only part that was to be prepared, from 1 on; None if all were."""
    finished_before: int = 0
    """Parts that an earlier start had finished."""
    validation: bool = False
    """Whether documents were to be held out."""
    engine: str = ""
    """The encoder used; empty when nothing was left to do."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the same as lines of text."""
        where = f"part {self.part} of {self.parts}" if self.part else f"{self.parts} part(s)"
        lines = [
            f"{self.out}: {self.documents:,} documents, {self.tokens:,} tokens,"
            f" {self.utf8_bytes / 1e6:,.1f} MB of text"
            f" ({self.utf8_bytes / max(self.tokens, 1):.2f} bytes per token) in {where}"
        ]
        if self.validation:
            held_out = f"{self.validation_documents:,} documents, {self.validation_tokens:,} tokens"
            enough = self.validation_documents or self.part
            few = "" if enough else "; give a larger --validation or more documents"
            lines.append(f"validation: {held_out}{few}")
        if self.duplicates:
            lines.append(f"left out {self.duplicates:,}: duplicate documents")
        lines += [
            line(why, count, self.reject_files.get(why, ())) for why, count in sorted(self.rejects.items())
        ]
        lines += self._lost_lines()
        if self.finished_before:
            lines.append(f"{self.finished_before} part(s) had been finished before")
        if self.engine:
            rate = self.utf8_bytes / 1e6 / max(self.seconds, 1e-9)
            lines.append(f"encoded by {self.engine} in {self.seconds:.1f} s ({rate:.1f} MB/s)")
        return "\n".join([*lines, *self.notes])

    def _lost_lines(self) -> list[str]:
        """Return a line for each kind of text that the tokenizer cannot encode."""
        within = f" (in {self.lost['documents']:,} documents)" if "documents" in self.lost else ""
        return [
            f"warning: {count:,} × {what}{within if what.startswith('byte') else ''}: the tokenizer has no"
            " piece for it, so it is not in the shards"
            for what, count in sorted(self.lost.items())
            if what != "documents"
        ]
