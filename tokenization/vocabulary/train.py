"""Train a SentencePiece vocabulary from texts; the same input gives the same model."""

from __future__ import annotations

import heapq
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import xxhash
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.disk import refuse_existing, whole_directory
from tokenization.errors import InfrastructureError, UserError
from tokenization.text import documents
from tokenization.text.rejects import Limit
from tokenization.text.streams import check_encoding
from tokenization.text.texts import Texts
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import Tokenizer

LINE_CHARS = 1000
"""Longer lines are cut: SentencePiece's trainer would leave them out."""

_FIRST_PIECES = 3 + 256
"""unk, bos, eos and the bytes."""

_LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True)
class VocabularyTraining:
    """The result of `train_vocabulary`."""

    out: str
    fingerprint: str
    pieces: int
    files: int
    sample_bytes: int
    sample_lines: int
    left_out: list[str] = field(default_factory=list)
    """Lines on the files and records that are left out."""

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the same as lines of text."""
        made = (
            f"{self.pieces:,} pieces in {self.out}, from {self.sample_lines:,} lines"
            f" ({self.sample_bytes / 1e6:.1f} MB) of {self.files:,} files"
        )
        return "\n".join([made, f"fingerprint {self.fingerprint}", *self.left_out])


def train_vocabulary(
    inputs: Sequence[str | Path],
    size: int,
    out: str | Path,
    *,
    text_field: str = "text",
    encoding: str = "utf-8",
    max_rejects: Limit = None,
    sample_bytes: int = 100_000_000,
    character_coverage: float = 0.9995,
    seed: int = 0,
    threads: int = 2,
    overwrite: bool = False,
) -> VocabularyTraining:
    """Train a BPE vocabulary of `size` pieces in LLaMA's layout and write it to the directory `out`.

    LLaMA's layout: unk 0, bos 1, eos 2, 256 byte pieces, byte fallback, split digits, no normalization. At
    most `sample_bytes` of lines are held in memory, shared equally among the files where they are large
    enough, drawn by a hash of `seed` and the line's place. Files that are not UTF-8 are read in `encoding`.

    Raises:
        UserError: there is no text, it cannot make that many pieces, more than `max_rejects` records (or
            that share of them) are not documents, or `out` holds something and `overwrite` is not given.
    """
    refuse_existing(out, overwrite=overwrite)
    texts = Texts(inputs, documents.DocumentFormat(text_field, "lines", check_encoding(encoding)))
    lines, files, taken = sample(texts, sample_bytes, seed)
    if not lines:
        raise UserError("has no line of text", file=", ".join(map(str, inputs)), fix="is --text-field right?")
    texts.left_out.check(max_rejects)
    model = _train(lines, size, character_coverage, threads)
    with whole_directory(out, overwrite=overwrite) as draft:
        write_directory(draft, model)
    trained = Tokenizer(Path(out), model, None, {})
    return VocabularyTraining(
        str(out), trained.fingerprint, trained.size, files, taken, len(lines), texts.notes()
    )


def sample(texts: Texts, budget: int, seed: int) -> tuple[list[str], int, int]:
    """Return lines of the texts within `budget` bytes, the number of files, and the bytes taken.

    From the smallest file on, each may fill an equal share of the rest of the budget.
    """
    order = sorted(texts.files, key=lambda path: sum(piece.size for piece in texts.files[path]))
    place = {path: index for index, path in enumerate(texts.files)}
    chosen: dict[str, list[str]] = {}
    taken = 0
    for done, path in enumerate(order):
        share = (budget - taken) // (len(order) - done)
        chosen[path], used = _draw(_lines(texts.read(path)), share, seed + (place[path] << 64))
        taken += used
    return [line for path in texts.files for line in chosen[path]], len(texts.files), taken


def _draw(lines: Iterator[str], budget: int, seed: int) -> tuple[list[str], int]:
    """Draw lines uniformly within `budget` bytes, in their order: those with the smallest hashes."""
    heap: list[tuple[int, int, str, int]] = []  # largest hash first, since it leaves first
    taken = 0
    salt = xxhash.xxh3_64_intdigest(str(seed).encode())
    for place, line in enumerate(lines):
        key = xxhash.xxh3_64_intdigest(place.to_bytes(8, "little"), seed=salt)
        if taken >= budget and heap and key >= -heap[0][0]:
            continue
        size = len(line.encode())
        heapq.heappush(heap, (-key, place, line, size))
        taken += size
        while taken > budget and heap:
            taken -= heapq.heappop(heap)[3]
    return [line for _, _, line, _ in sorted(heap, key=lambda entry: entry[1])], taken


def _lines(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), LINE_CHARS):
                yield line[start : start + LINE_CHARS]


def _train(lines: list[str], size: int, character_coverage: float, threads: int) -> spm.ModelProto:
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=min(
                max(size, _FIRST_PIECES), _LARGEST_SIZE
            ),  # beyond these limits its error does not name a possible size
            character_coverage=character_coverage,
            num_threads=threads,
            max_sentence_length=16 * LINE_CHARS,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _refusal(size, str(error).rsplit("]", 1)[-1].strip()) from None
    except OSError as error:
        raise InfrastructureError(f"the vocabulary could not be trained ({error})") from error
    model = spm.ModelProto()
    model.ParseFromString(written.getvalue())
    return model


def _refusal(size: int, message: str) -> UserError:
    """Translate an error of SentencePiece's trainer into one about `--size`."""
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        what, fix = f"is too small: there are {found[1]} single pieces", f"give {found[1]} or more"
    elif found := re.search(r"too high .* value <= (\d+)", message):
        what, fix = "is more than this text gives", f"give {found[1]} or less, or more text"
    else:
        what, fix = f"cannot be trained: {message}", "give another size, or more text"
    return UserError(what, field="--size", value=size, fix=fix)
