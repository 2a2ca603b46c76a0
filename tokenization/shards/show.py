"""The text of one sample, as a person reads it, and the documents that it is of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenization.errors import UserError
from tokenization.shards.store import open_tokens
from tokenization.tokenizer.decoder import decoder_of
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.fingerprint import same


@dataclass(frozen=True)
class Excerpt:
    """The part of a document that lies in a sample."""

    document: int
    """Number in the source, from 0."""
    skipped: int
    """Tokens of the document before the sample."""
    tokens: int
    """Tokens of the document in the sample."""
    text: str
    """Without the EOS that ends a document."""


@dataclass(frozen=True)
class ShownSample:
    """A sample of a source, decoded."""

    prefix: str
    sample: int
    seq_len: int
    start: int
    """First token in the source."""
    documents: tuple[Excerpt, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the same as lines of text."""
        stop = self.start + self.seq_len + 1
        place = f"tokens {self.start:,} to {stop:,}"
        lines = [f"{self.prefix}: sample {self.sample:,} of {self.seq_len:,} tokens: {place}"]
        for one in self.documents:
            begun = f", after {one.skipped:,} that come before the sample" if one.skipped else ""
            lines += [f"--- document {one.document:,}: {one.tokens:,} tokens{begun}", one.text]
        return "\n".join(lines)


def show_sample(prefix: str | Path, sample: int, seq_len: int, tokenizer: str | Path) -> ShownSample:
    """Decode sample number `sample` (from 0) of the source at `prefix`, document by document.

    Raises:
        UserError: the source or the tokenizer cannot be opened, they do not belong together, or there is no
            such sample.
    """
    store, known = open_tokens(prefix), open_tokenizer(tokenizer)
    if not same(store.tokenizer, known.fingerprint):
        what = f"is not the tokenizer of {prefix}, whose fingerprint is {store.tokenizer}"
        fix = "give the tokenizer that `rewarm data prepare` was run with"
        raise UserError(what, field="--tokenizer", value=str(tokenizer), fix=fix)
    count = store.samples(seq_len)
    if not 0 <= sample < count:
        what = f"is not one of the {count:,} samples of {seq_len:,} tokens in {prefix}"
        raise UserError(what, field="--sample", value=sample, fix=f"use 0 to {count - 1:,}")
    decode, start = decoder_of(known), sample * seq_len
    stop = start + seq_len + 1
    first, last = store.documents_of(start, seq_len + 1)
    found = []
    for document in range(first, last + 1):
        begins = store.document_start(document)
        ends = store.document_start(document + 1) if document + 1 < store.documents else store.tokens
        begin, end = max(begins, start), min(ends, stop)
        ids = store.read(begin, end - begin).tolist()
        text = decode(ids[:-1] if ids and ids[-1] == store.eos_id else ids)
        found.append(Excerpt(document, begin - begins, end - begin, text))
    return ShownSample(str(prefix), sample, seq_len, start, tuple(found))
