"""The texts of some inputs, read in this process, file by file, and all that is left out on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenization import documents, records
from tokenization.inputs import find
from tokenization.rejects import LeftOut


class Texts:
    """The documents of `inputs`; what has been left out is known of the files that have been read."""

    def __init__(self, inputs: Sequence[str | Path], format: documents.Format) -> None:
        """Find the files.

        Raises:
            UserError: see `documents.plan`.
        """
        self._format = format
        self._found = find(inputs, format.text_field, format.encoding)
        self.left_out = LeftOut(format.encoding)
        self.files: dict[str, list[documents.Slice]] = {str(file): [] for file in self._found.files}
        """By the path, in their order."""
        for piece in documents.cut(self._found.files, format):
            self.files[piece.path].append(piece)

    def read(self, path: str) -> Iterator[str]:
        """The documents of one of the files."""
        for block in documents.blocks(self.files[path], self._format):
            batch = records.read(block, self._format)
            self.left_out.add(len(batch.texts), batch.rejects)
            yield from batch.texts

    def notes(self) -> list[str]:
        """A line for each reason why something was left out: files, then records."""
        return [*filter(None, [self._found.left_out]), *self.left_out.lines()]
