"""One corpus to prepare: what makes its bytes, what its parts are, and what came of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from tokenization import documents
from tokenization.fingerprint import core
from tokenization.rejects import line
from tokenization.shard_format import beside
from tokenization.shards import part_prefix
from tokenization.tokenizer_files import Tokenizer


@dataclass
class PartCounts:
    """What one part holds; `finished` is written last, when its shards are whole."""

    job: str
    finished: bool = False
    documents: int = 0
    tokens: int = 0
    utf8_bytes: int = 0
    validation_documents: int = 0
    validation_tokens: int = 0
    duplicates: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    """What the tokenizer has no piece for, see `encoding.Tokens.lost`."""
    reject_files: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    """What `job` was made of, to tell what another job has not in common with this one."""


@dataclass(frozen=True)
class Job:
    """A corpus and the options that make its bytes."""

    out: Path
    tokenizer: Tokenizer
    format: documents.Format
    slices: list[documents.Slice]
    parts: int
    validation: Fraction
    dedup: bool

    @property
    def identity(self) -> str:
        """Equal for equal bytes: the files as they are and in their order, the tokenizer and the options."""
        return _hash(self.facts)

    @property
    def earlier_identity(self) -> str:
        """The identity that an earlier rewarm wrote, which knew half of the tokenizer's fingerprint."""
        files = sorted({piece.path for piece in self.slices})
        stats = [(file, stat.st_size, stat.st_mtime_ns) for file in files for stat in [Path(file).stat()]]
        tokenizer = core(self.tokenizer.fingerprint)
        form = {name: value for name, value in asdict(self.format).items() if name != "encoding"}
        facts = [stats, tokenizer, form, self.parts, str(self.validation), self.dedup]
        return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())

    @cached_property
    def facts(self) -> dict[str, str]:
        """All that decides the bytes of the parts, by what it is called."""
        files = list(dict.fromkeys(piece.path for piece in self.slices))
        stats = [(file, stat.st_size, stat.st_mtime_ns) for file in files for stat in [Path(file).stat()]]
        return {
            "the files": f"{len(files)} {_hash(stats)}",
            "the tokenizer": self.tokenizer.fingerprint,
            "--text-field, --documents or --encoding": repr(list(asdict(self.format).values())),
            "the number of parts": str(self.parts),
            "--validation": str(self.validation),
            "--deduplicate": str(self.dedup),
        }

    def part(self, index: int) -> list[documents.Slice]:
        """The slices of a part: a run of neighbours, as much as the others have."""
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
        """Where part `index` is written."""
        return part_prefix(self.out, index, self.parts)

    def validation_prefix(self, index: int) -> Path:
        """Where the validation documents of part `index` are written."""
        return part_prefix(f"{self.out}-validation", index, self.parts)

    def counts_path(self, index: int) -> Path:
        """The file that says that part `index` is finished."""
        return beside(self.prefix(index), ".prepared.json")


def _hash(facts: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


@dataclass
class Prepared:
    """What `prepare` wrote, and what it left out."""

    out: str
    parts: int
    finished_before: int = 0
    """Parts that an earlier start had finished."""
    validation: bool = False
    """Whether documents were to be held out."""
    documents: int = 0
    tokens: int = 0
    utf8_bytes: int = 0
    validation_documents: int = 0
    validation_tokens: int = 0
    duplicates: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    """Records that are no documents, by the reason."""
    lost: dict[str, int] = field(default_factory=dict)
    """What the tokenizer has no piece for, and how often: it is not in the shards."""
    reject_files: dict[str, list[str]] = field(default_factory=dict)
    """The names of the first files that have such records."""
    engine: str = ""
    """The encoder used; empty when nothing was left to do."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, counts: PartCounts) -> None:
        """Count a part in."""
        for name in (
            "documents",
            "tokens",
            "utf8_bytes",
            "validation_documents",
            "validation_tokens",
            "duplicates",
        ):
            setattr(self, name, getattr(self, name) + getattr(counts, name))
        self.rejects = dict(Counter(self.rejects) + Counter(counts.rejects))
        self.lost = dict(Counter(self.lost) + Counter(counts.lost))
        self.reject_files = counts.reject_files | self.reject_files

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """The same for a reader."""
        lines = [
            f"{self.out}: {self.documents:,} documents, {self.tokens:,} tokens,"
            f" {self.utf8_bytes / 1e6:,.1f} MB of text"
            f" ({self.utf8_bytes / max(self.tokens, 1):.2f} bytes per token) in {self.parts} part(s)"
        ]
        if self.validation:
            held_out = f"{self.validation_documents:,} documents, {self.validation_tokens:,} tokens"
            few = "" if self.validation_documents else "; give a larger --validation or more documents"
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
        """A line for each sort of text that the tokenizer cannot write down."""
        within = f" (in {self.lost['documents']:,} documents)" if "documents" in self.lost else ""
        return [
            f"warning: {count:,} × {what}{within if what.startswith('byte') else ''}: the tokenizer has no"
            " piece for it, so it is not in the shards"
            for what, count in sorted(self.lost.items())
            if what != "documents"
        ]
