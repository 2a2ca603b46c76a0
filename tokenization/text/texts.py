"""The texts of some inputs, read in this process, file by file, with notes on what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenization.errors import UserError
from tokenization.text import documents, records
from tokenization.text.inputs import find_files
from tokenization.text.rejects import LeftOut
from tokenization.text.streams import check_encoding


class Texts:
    """The documents of `inputs`; `left_out` counts the files that have been read."""

    def __init__(self, inputs: Sequence[str | Path], format: documents.DocumentFormat) -> None:
        """Find the files.

        Raises:
            UserError: see `documents.slices_of`.
        """
        self._format = format
        self._found = find_files(inputs, format.text_field, format.encoding)
        self.left_out = LeftOut(format.encoding)
        self.files: dict[str, list[documents.Slice]] = {str(file): [] for file in self._found.files}
        """The slices of each file, by its path."""
        for piece in documents.cut_slices(self._found.files, format):
            self.files[piece.path].append(piece)

    def read(self, path: str) -> Iterator[str]:
        """Yield the documents of one of the files."""
        for block in documents.blocks(self.files[path], self._format):
            batch = records.read_records(block, self._format)
            self.left_out.add(len(batch.texts), batch.rejects)
            yield from batch.texts

    def notes(self) -> list[str]:
        """Return a line for each reason why something was left out: files, then records."""
        return [*filter(None, [self._found.left_out]), *self.left_out.lines()]


def first_texts(
    paths: Sequence[str], characters: int, text_field: str, encoding: str
) -> tuple[dict[str, str], list[str]]:
    """Return the first `characters` of the text at each path, and a line for all that was left out.

    Raises:
        UserError: a path has no text.
    """
    format = documents.DocumentFormat(text_field, "lines", check_encoding(encoding))
    beginnings, notes = {}, []
    for path in paths:
        texts = Texts([path], format)
        found: list[str] = []
        for text in (text for file in texts.files for text in texts.read(file)):
            found.append(text)
            if sum(map(len, found)) >= characters:
                break
        if not found:
            why = "; ".join(["has no text", *texts.notes()])
            raise UserError(why, field="--text", value=path, fix="is --text-field right?")
        beginnings[path] = "\n".join(found)[:characters]
        notes += [f"{path}: {note}" for note in texts.notes()]
    return beginnings, notes
