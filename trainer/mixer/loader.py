"""Read a rank's rows of each global batch from memory-mapped shards, one step ahead of the training."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokenization.errors import InfrastructureError, UserError
from tokenization.shards.store import TokenStore
from trainer.mixer.batch import MicroBatch, document_places
from trainer.mixer.mixture import Mixture
from trainer.mixer.permutation import Ints


class Loader:
    """The micro batches of one rank; a thread reads them one step ahead."""

    wait_s: float = 0.0
    """How long the last `step` waited for data, in seconds."""
    samples_crc32: int = 0
    """CRC-32 of the last global batch's sources and samples, in order: equal for equal data."""

    def __init__(
        self,
        mixture: Mixture,
        stores: Mapping[str, TokenStore],
        *,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        document_mask: Literal["none", "causal_per_document"],
        eos_id: int,
    ) -> None:
        self._mixture, self._stores = mixture, [stores.get(name) for name in mixture.names]
        self._micro_batch_size = micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._document_mask, self._eos_id = document_mask, eos_id
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewarm-loader")
        self._ahead: tuple[tuple[int, int, int], Future[tuple[list[MicroBatch], int]]] | None = None

    def step(self, phase: int, position: int, size: int) -> list[MicroBatch]:
        """Return this rank's micro batches of the global batch [position, position + size) of a phase.

        Prefetches the following batch; asking for another one costs a read.

        Raises:
            UserError: the batch does not divide among ranks and micro batches, or a source runs out.
            InfrastructureError: a source cannot be read.
        """
        started = time.perf_counter()
        wanted = (phase, position, size)
        if self._ahead is None or self._ahead[0] != wanted:
            self._ahead = (wanted, self._reader.submit(self._read, *wanted))
        step, self.samples_crc32 = self._ahead[1].result()
        self.wait_s = time.perf_counter() - started
        follows = self._following(phase, position + size)
        self._ahead = follows and ((*follows, size), self._reader.submit(self._read, *follows, size))
        return step

    def follow(self, mixture: Mixture) -> None:
        """Read from another mixture of the same sources from now on; what was read ahead is read again."""
        if self._ahead is not None:
            self._ahead[1].exception()  # it ends before its mixture goes; its error will come again
        self._mixture, self._ahead = mixture, None

    def close(self) -> None:
        """End the thread."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _following(self, phase: int, position: int) -> tuple[int, int] | None:
        """Return where the next batch begins if none is skipped; None after the last."""
        if position < self._mixture.phase_samples[phase]:
            return phase, position
        if phase + 1 == len(self._mixture.phase_samples) or self._length(phase + 1) != self._length(phase):
            return None  # the next phase has batches of another size
        return phase + 1, 0

    def _length(self, phase: int) -> int:
        """The tokens of a sample."""
        return self._mixture.orders[phase].seq_len

    def _read(self, phase: int, position: int, size: int) -> tuple[list[MicroBatch], int]:
        rows, left = divmod(size, self._world_size)
        if left or rows % self._micro_batch_size:
            what = (
                f"does not divide into {self._world_size} ranks by micro batches of {self._micro_batch_size}"
            )
            fix = f"make it a multiple of {self._world_size * self._micro_batch_size}"
            raise UserError(what, field="global_batch_size", value=size, fix=fix)
        own = slice(self._rank * rows, (self._rank + 1) * rows)
        batch = self._mixture.batch(phase, position, size)
        checksum = zlib.crc32(batch.index.tobytes(), zlib.crc32(batch.source.tobytes()))
        source = batch.source[own]
        tokens = self._tokens(source, batch.index[own], self._length(phase))
        inputs, targets = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
        positions = None
        if self._document_mask == "causal_per_document":
            positions = document_places(tokens[:, :-1], self._eos_id)
        parts = (slice(at, at + self._micro_batch_size) for at in range(0, rows, self._micro_batch_size))
        micro_batches = [
            MicroBatch(
                inputs[part], targets[part], source[part], None if positions is None else positions[part]
            )
            for part in parts
        ]
        return micro_batches, checksum

    def _tokens(self, source: Ints, index: Ints, seq_len: int) -> NDArray[np.int32]:
        """Read the rows' tokens: [rows, seq_len + 1]; each source once, from front to back."""
        tokens = np.empty((len(source), seq_len + 1), np.int32)
        for number in np.unique(source):
            rows = np.flatnonzero(source == number)
            rows = rows[np.argsort(index[rows])]
            where, store = f"sources.{self._mixture.names[number]}", self._stores[number]
            if store is None:
                raise UserError("is read, and its shards are gone", field=where, fix="put them back")
            try:
                tokens[rows] = store.read_samples(index[rows], seq_len)
            except OSError as error:
                raise InfrastructureError(f"{where}: cannot be read ({error})") from error
        return tokens
