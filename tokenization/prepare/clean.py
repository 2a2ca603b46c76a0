"""Write a validation set again, without the documents that are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenization.errors import UserError
from tokenization.prepare.overlap import SetOverlap
from tokenization.shards.format import ShardMeta
from tokenization.shards.store import find_parts, open_tokens
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.decoder import decoder_of
from tokenization.tokenizer.files import Tokenizer
from tokenization.tokenizer.fingerprint import same

CLEAN = "-clean"
"""Is added to the prefix of a validation set for the set without what is trained on."""


def write_clean(overlap: SetOverlap, tokenizer: Tokenizer, *, job: str = "", overwrite: bool = False) -> str:
    """Write the documents of a set that are not trained on at `PREFIX-clean`; return that prefix.

    The tokenizer says how many bytes the others have. What the same `job` has written there is replaced.

    Raises:
        UserError: there are shards at that prefix already, or the set has another tokenizer.
    """
    store, out = open_tokens(overlap.prefix), Path(f"{overlap.prefix}{CLEAN}")
    if not same(store.tokenizer, tokenizer.fingerprint):
        what = f"is not the tokenizer of {overlap.prefix}, whose fingerprint is {store.tokenizer}"
        fix = "give the tokenizer that `rewarm data prepare` was run with"
        raise UserError(what, field="--tokenizer", value=str(tokenizer.path), fix=fix)
    if not overwrite and _there(out, job):
        raise UserError("holds shards already", file=out, fix="remove them, or give --overwrite")
    left_out = {one.document for one in overlap.found}
    decode, bytes_left = decoder_of(tokenizer), store.utf8_bytes
    with ShardWriter(
        out, vocab_size=store.vocab_size, tokenizer=store.tokenizer, eos_id=store.eos_id, job=job
    ) as writer:
        for document in range(store.documents):
            begin = store.document_start(document)
            last = document + 1 == store.documents
            ids = store.read(begin, (store.tokens if last else store.document_start(document + 1)) - begin)
            if document in left_out:
                bytes_left -= len(decode(ids[:-1].tolist()).encode("utf-8", "surrogatepass"))
            else:
                writer.add_documents(ids, np.array([len(ids)]))
        writer.utf8_bytes = max(bytes_left, 0)
    return str(out)


def _there(prefix: Path, job: str) -> bool:
    """Whether shards are there that another job has written."""
    try:
        parts = find_parts(prefix)
        return not job or any(ShardMeta.read(part).job != job for part in parts)
    except UserError as error:
        return "has no token shards" not in str(error)
