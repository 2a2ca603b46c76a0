"""Find validation text that is trained on as well: copies, near copies, and runs of 13 tokens.

The validation sets are held in memory; the training text streams past them, so memory does not grow with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenization.disk import with_ending
from tokenization.errors import UserError, UserErrors
from tokenization.prepare.shingles import BINS, Hashes, Runs, band_keys, similarity
from tokenization.prepare.workers import map_in_workers
from tokenization.shards.store import TokenStore, open_tokens
from tokenization.tokenizer.fingerprint import same

GRAM = 13
"""Tokens of the runs that are looked up one by one, as in Brown et al. 2020 (arXiv 2005.14165)."""

SHINGLE = 5
"""Tokens of the runs whose sets are compared by MinHash: a changed word spoils only five of them."""

LEAST = 0.5
"""A document is counted as trained on from this similarity, or from this share of its runs of 13, on."""

PIECE = 1 << 20
"""Tokens that are looked up at a time; a longer document is cut."""

_MOST_SLOTS = 1 << 28


@dataclass
class TrainedOn:
    """What of one validation document is in the training text."""

    document: int
    """Its number in its set, from 0."""
    tokens: int
    exact: str | None = None
    """A training document that is equal: `PREFIX document N`."""
    similarity: float = 0.0
    """Estimated Jaccard similarity of its runs of 5 tokens with those of the nearest training document."""
    nearest: str | None = None
    grams: float = 0.0
    """Share of its runs of 13 tokens that are anywhere in the training text."""

    def trained_on(self, least: float) -> bool:
        """Whether it counts as trained on."""
        return self.exact is not None or max(self.similarity, self.grams) >= least

    def to_text(self) -> str:
        """Return the same as a line."""
        if self.exact is not None:
            what = f"equal to {self.exact}"
        else:
            near = f"{self.similarity:.0%} like {self.nearest}" if self.nearest else "like none"
            what = f"{near}; {self.grams:.0%} of its runs of {GRAM} tokens are trained on"
        return f"  document {self.document:,} ({self.tokens:,} tokens): {what}"


@dataclass
class SetOverlap:
    """What of one validation set is in the training text."""

    prefix: str
    documents: int
    tokens: int
    least: float
    found: list[TrainedOn] = field(default_factory=list)
    """The documents that count as trained on."""
    grams: float = 0.0
    """Share of the runs of 13 tokens in the whole set that are anywhere in the training text."""

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self, most: int = 20) -> str:
        """Return the same as lines, with `most` documents named."""
        exact = sum(one.exact is not None for one in self.found)
        tokens = sum(one.tokens for one in self.found)
        lines = [
            f"{self.prefix}: {exact:,} of {self.documents:,} documents are trained on as they are, "
            f"{len(self.found) - exact:,} more to {self.least:.0%} or more; together {tokens:,} of "
            f"{self.tokens:,} tokens ({tokens / max(self.tokens, 1):.2%}); {self.grams:.2%} of all runs of "
            f"{GRAM} tokens are in the training text"
        ]
        lines += [one.to_text() for one in self.found[:most]]
        if len(self.found) > most:
            lines.append(f"  … and {len(self.found) - most:,} more")
        return "\n".join(lines)


def find_overlap(
    train: Sequence[str | Path], validation: Sequence[str | Path], *, workers: int = 1, least: float = LEAST
) -> list[SetOverlap]:
    """Look for the documents of each validation set in all training sources.

    Raises:
        UserErrors: shards are missing or damaged, or were made with different tokenizers.
    """
    sources = {str(prefix): open_tokens(prefix) for prefix in train}
    sets = {str(prefix): open_tokens(prefix) for prefix in validation}
    _check_alike(sources, sets)
    known = _Index(list(sets.values()))
    look = _Lookup(known, list(sources.values()))
    todo = [[piece] for number, store in enumerate(sources.values()) for piece in _pieces(number, store)]
    state = _State.empty(known)
    with contextlib.closing(map_in_workers(look, todo, workers)) as made:
        for hits in made:
            state.add(hits)
    return list(_results(sets, list(sources), known, state, least))


def _check_alike(sources: dict[str, TokenStore], sets: dict[str, TokenStore]) -> None:
    """Refuse shards of different tokenizers: equal text has other ids in them."""
    stores = {**sources, **sets}
    first = next(iter(stores))
    if problems := [
        UserError(
            f"was made with another tokenizer than {first}: their ids cannot be compared",
            value=prefix,
            field="--validation" if prefix in sets else "--train",
            fix="prepare both with one tokenizer",
        )
        for prefix, store in stores.items()
        if not same(store.tokenizer, stores[first].tokenizer)
    ]:
        raise UserErrors(problems)


@dataclass(frozen=True)
class _Piece:
    """Some documents of a source, or a part of a long one."""

    source: int
    document: int
    """Number in the source of the first one."""
    start: int
    """Its first token in the source."""
    lengths: NDArray[np.int64]
    whole: bool = True


def _pieces(number: int, store: TokenStore) -> Iterator[_Piece]:
    """Cut a source into pieces of about `PIECE` tokens; parts of a document share `GRAM` tokens."""
    document = start = 0
    for part in store.parts:
        for first in range(0, part.meta.documents, PIECE // 16):
            lengths = np.asarray(part.lengths[first : first + PIECE // 16], dtype=np.int64)
            if lengths.min() < 1 or start + int(lengths.sum()) > store.tokens:
                what, fix = (
                    "is damaged: its documents do not fit its tokens",
                    "run `rewarm data inspect` on it",
                )
                raise UserError(what, file=with_ending(part.prefix, ".idx"), fix=fix)
            block, long = np.cumsum(lengths) // PIECE, lengths > PIECE
            cuts = np.flatnonzero((np.diff(block) != 0) | long[1:] | long[:-1]) + 1
            for own in np.split(lengths, cuts):
                total = int(own.sum())
                if len(own) == 1 and total > PIECE:
                    for begin in range(0, total, PIECE):
                        size = min(PIECE + GRAM, total - begin)
                        yield _Piece(number, document, start + begin, np.array([size]), False)
                elif len(own):
                    yield _Piece(number, document, start, own)
                document, start = document + len(own), start + total


class _Index:
    """The validation sets: every document's hash, MinHash and runs of 13 tokens."""

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        self.firsts = np.cumsum([0] + [store.documents for store in stores])
        """Number of each set's first document among all."""
        whole, signatures, grams, owners, lengths = [], [], [], [], []
        for number, store in enumerate(stores):
            for piece in _pieces(number, store):
                runs = Runs(store.read(piece.start, int(piece.lengths.sum())), piece.lengths)
                hashes, document = runs.of_length(GRAM)
                first = int(self.firsts[number]) + piece.document
                grams.append(hashes)
                owners.append(document + first)
                if piece.whole or piece.start == store.document_start(piece.document):
                    whole.append(runs.whole())
                    signatures.append(runs.signatures(SHINGLE))
                    last = piece.document + len(piece.lengths)
                    end = store.document_start(last) if last < store.documents else store.tokens
                    lengths.append(piece.lengths if piece.whole else np.array([end - piece.start]))
        self.whole: Hashes = np.concatenate([np.empty(0, np.uint64), *whole])
        self.signatures: Hashes = np.concatenate([np.empty((0, BINS), np.uint64), *signatures])
        self.lengths = np.concatenate([np.empty(0, np.int64), *lengths])
        self.grams, of = np.unique(np.concatenate([np.empty(0, np.uint64), *grams]), return_inverse=True)
        self.occurrences, self.owners = of, np.concatenate([np.empty(0, np.int64), *owners])
        self.distinct = np.unique(self.whole, return_index=True)[1]
        """One document of all that are equal."""
        keys, document = band_keys(self.signatures[self.distinct])
        order = np.argsort(keys, kind="stable")
        self.keys, self.key_owners = keys[order], self.distinct[document[order]]
        self.by_whole = np.argsort(self.whole, kind="stable")
        bits = max(16, min(_MOST_SLOTS, 16 * len(self.grams)).bit_length() - 1)
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, bool)
        self._slots[(self.grams >> self._shift).astype(np.int64)] = True

    def known_grams(self, hashes: Hashes) -> NDArray[np.int64]:
        """Return the places in `grams` of those hashes that are there."""
        likely = np.unique(hashes[self._slots[(hashes >> self._shift).astype(np.int64)]])
        place = np.minimum(np.searchsorted(self.grams, likely), max(len(self.grams) - 1, 0))
        return place[self.grams[place] == likely] if len(self.grams) else place[:0]


@dataclass(frozen=True)
class _Hits:
    """What one piece of training text has in common with the validation sets."""

    source: int
    grams: NDArray[np.int64]
    pairs: list[tuple[int, int, float]]
    """Validation document, training document, similarity; 1 more for equal ones."""


@dataclass(frozen=True)
class _Lookup:
    """The function of a worker that looks a piece up."""

    known: _Index
    sources: Sequence[TokenStore]

    def __call__(self, task: list[_Piece]) -> _Hits:
        (piece,) = task
        known = self.known
        runs = Runs(self.sources[piece.source].read(piece.start, int(piece.lengths.sum())), piece.lengths)
        hits = known.known_grams(runs.of_length(GRAM)[0])
        pairs = list(self._near(runs, piece))
        if piece.whole:
            pairs += self._equal(runs.whole(), piece)
        return _Hits(piece.source, hits, pairs)

    def _equal(self, hashes: Hashes, piece: _Piece) -> Iterator[tuple[int, int, float]]:
        """Find the validation documents that equal one of the piece's."""
        known = self.known
        ordered = known.whole[known.by_whole]
        low, high = (np.searchsorted(ordered, hashes, side=side) for side in ("left", "right"))
        for place in np.flatnonzero(high > low).tolist():
            for own in known.by_whole[low[place] : high[place]].tolist():
                yield own, piece.document + place, 2.0

    def _near(self, runs: Runs, piece: _Piece) -> Iterator[tuple[int, int, float]]:
        """Find the validation documents that are much like one of the piece's."""
        known = self.known
        signatures = runs.signatures(SHINGLE)
        keys, document = band_keys(signatures)
        low, high = (np.searchsorted(known.keys, keys, side=side) for side in ("left", "right"))
        counts = high - low
        theirs = np.repeat(document, counts)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        own = known.key_owners[np.repeat(low, counts) + within]
        both = np.unique(np.stack([own, theirs]), axis=1)
        like = similarity(known.signatures[both[0]], signatures[both[1]])
        for validation, training, value in zip(*both.tolist(), like.tolist(), strict=True):
            yield validation, piece.document + training, min(value, 1.0)


@dataclass
class _State:
    """What has been found so far, of each validation document."""

    seen: NDArray[np.bool_]
    """Which of the known runs of 13 tokens are in the training text."""
    best: dict[int, tuple[float, int, int]] = field(default_factory=dict)
    """The similarity to the nearest training document, its source and its number."""

    @classmethod
    def empty(cls, known: _Index) -> _State:
        return cls(np.zeros(len(known.grams), bool))

    def add(self, hits: _Hits) -> None:
        """Add what one piece has in common."""
        self.seen[hits.grams] = True
        for validation, training, value in hits.pairs:
            if value > self.best.get(validation, (0.0, 0, 0))[0]:
                self.best[validation] = (value, hits.source, training)


def _results(
    sets: dict[str, TokenStore], sources: Sequence[str], known: _Index, state: _State, least: float
) -> Iterator[SetOverlap]:
    """Say of each validation set which of its documents are trained on."""
    seen = state.seen[known.occurrences]
    documents = len(known.whole)
    shares = np.bincount(known.owners, seen, documents) / np.maximum(
        np.bincount(known.owners, minlength=documents), 1
    )
    twins = dict(zip(known.whole[known.distinct].tolist(), known.distinct.tolist(), strict=True))
    for number, (prefix, store) in enumerate(sets.items()):
        first, stop = int(known.firsts[number]), int(known.firsts[number + 1])
        own = (known.owners >= first) & (known.owners < stop)
        result = SetOverlap(
            prefix, store.documents, store.tokens, least, grams=float(seen[own].mean()) if own.any() else 0.0
        )
        for document in range(first, stop):
            one = TrainedOn(document - first, int(known.lengths[document]), grams=float(shares[document]))
            twin = twins[int(known.whole[document])]
            value, source, training = max(state.best.get(it, (0.0, 0, 0)) for it in (document, twin))
            if value > 0:
                one.similarity, one.nearest = min(value, 1.0), f"{sources[source]} document {training:,}"
                one.exact = one.nearest if value > 1 else None
            if one.trained_on(least):
                result.found.append(one)
        yield result
