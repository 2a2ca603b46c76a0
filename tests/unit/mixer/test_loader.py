"""What a rank reads: the same batch for every world size, and the tokens that the mixture names."""

import threading

import numpy as np
import pytest

from tests.helpers.mixer_recipes import mixture_of
from tokenization.errors import InfrastructureError, UserError
from trainer.mixer.batch import document_places
from trainer.mixer.loader import Loader

SEQ_LEN = 8
EOS = 2


class CountingStore:
    """Tokens that tell where they lie: token t of a source is `first + t`."""

    def __init__(self, first):
        self.first = first
        self.readers = []

    def read_samples(self, indices, seq_len):
        self.readers.append(threading.current_thread().name)
        begin = self.first + np.asarray(indices)[:, None] * seq_len
        return (begin + np.arange(seq_len + 1)).astype(np.int32)


def loader_of(mixture, *, micro_batch_size=1, rank=0, world_size=1, document_mask="none", stores=None):
    stores = stores or {name: CountingStore(10**6 * n) for n, name in enumerate(mixture.names)}
    return Loader(
        mixture,
        stores,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        document_mask=document_mask,
        eos_id=EOS,
    )


@pytest.fixture
def mixture():
    return mixture_of({"zh": 500, "en": 300}, ["zh: 3/4, en: 1/4"] * 2, samples=[240, 240], seq_len=SEQ_LEN)


def rows_of(micro_batches):
    return np.concatenate([batch.input_ids[:, 0] for batch in micro_batches])


def test_rows_are_the_tokens_that_the_mixture_names(mixture):
    loader = loader_of(mixture, micro_batch_size=4)
    [first, second] = loader.step(0, 16, 8)
    named = mixture.batch(0, 16, 8)
    expected = named.source * 10**6 + named.index * SEQ_LEN
    assert rows_of([first, second]).tolist() == expected.tolist()
    assert np.concatenate([first.source, second.source]).tolist() == named.source.tolist()
    assert (first.targets == first.input_ids + 1).all()  # the fake's tokens count upwards
    assert first.input_ids.shape == first.targets.shape == (4, SEQ_LEN)
    assert first.input_ids.dtype == first.targets.dtype == np.int64
    assert first.positions is None
    loader.close()


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"), [(1, 1), (1, 24), (2, 3), (3, 8), (4, 2), (6, 1), (12, 2), (24, 1)]
)
def test_ranks_together_read_the_batch_once_in_its_order(mixture, world_size, micro_batch_size):
    rows = []
    for rank in range(world_size):
        loader = loader_of(mixture, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        rows.append(rows_of(loader.step(0, 48, 24)))
        loader.close()
    whole = mixture.batch(0, 48, 24)
    assert np.concatenate(rows).tolist() == (whole.source * 10**6 + whole.index * SEQ_LEN).tolist()


@pytest.mark.parametrize("world_size", [1, 3, 32, 1024])
def test_the_batch_is_the_same_from_1_to_1024_ranks(world_size):
    size = 3072
    mixture = mixture_of({"zh": 9000, "en": 900}, ["zh: 0.9, en: 0.1"], samples=[2 * size], seq_len=SEQ_LEN)
    micro_batch_size = size // world_size
    ranks = [0, world_size // 2, world_size - 1]
    whole = mixture.batch(0, size, size)
    expected = (whole.source * 10**6 + whole.index * SEQ_LEN).reshape(world_size, -1)
    for rank in ranks:
        loader = loader_of(mixture, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        assert rows_of(loader.step(0, size, size)).tolist() == expected[rank].tolist()
        loader.close()


def test_reading_ahead_changes_nothing_and_seeking_breaks_it_off(mixture):
    steady, seeking = loader_of(mixture), loader_of(mixture)
    scan = {position: rows_of(steady.step(0, position, 24)).tolist() for position in range(0, 240, 24)}
    for position in (0, 24, 192, 48, 48, 216):
        assert rows_of(seeking.step(0, position, 24)).tolist() == scan[position]
    assert rows_of(seeking.step(1, 0, 24)).tolist() == rows_of(steady.step(1, 0, 24)).tolist()
    steady.close()
    seeking.close()


def test_the_next_step_is_read_while_the_caller_is_busy(mixture):
    stores = {name: CountingStore(0) for name in mixture.names}
    loader = loader_of(mixture, stores=stores)
    loader.step(0, 216, 24)
    ahead = loader._ahead
    assert ahead is not None
    assert ahead[0] == (1, 0, 24)  # the phase is over: the next one's first batch
    ahead[1].result()
    reads = len(stores["zh"].readers)
    loader.step(1, 0, 24)
    assert len(stores["zh"].readers) <= reads + 1  # at most the one after it, nothing again
    assert all(name.startswith("rewarm-loader") for name in stores["zh"].readers)
    assert loader.wait_s < 0.05
    loader.step(1, 216, 24)
    assert loader._ahead is None  # nothing follows the last step
    loader.close()


def test_a_batch_that_does_not_divide_is_refused(mixture):
    loader = loader_of(mixture, micro_batch_size=4, world_size=2)
    with pytest.raises(UserError, match=r"global_batch_size: 12 does not divide .* make it a multiple of 8"):
        loader.step(0, 0, 12)
    loader.close()


def test_a_disk_that_fails_is_named_by_source_and_worth_a_requeue(mixture):
    class Broken:
        def read_samples(self, indices, seq_len):
            raise OSError(5, "Input/output error")

    loader = loader_of(mixture, stores={"zh": CountingStore(0), "en": Broken()})
    with pytest.raises(InfrastructureError, match=r"sources\.en: cannot be read .*Input/output error"):
        loader.step(0, 0, 24)
    loader.close()


def test_positions_start_again_after_eos():
    rows = np.array(
        [
            [5, 6, 2, 7, 2, 2, 8, 9],  # ends of documents at 2, 4 and 5
            [2, 5, 6, 7, 8, 9, 5, 2],  # the row begins with a document's last token, and ends with one
        ],
        np.int32,
    )
    positions = document_places(rows, EOS)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_the_mask_is_made_on_request(mixture):
    class Documents:
        def read_samples(self, indices, seq_len):
            return np.tile(np.array([5, 2, 6, 7, 8, 2, 9, 9, 9], np.int32), (len(indices), 1))

    stores = {name: Documents() for name in mixture.names}
    loader = loader_of(mixture, document_mask="causal_per_document", stores=stores, micro_batch_size=3)
    batch = loader.step(0, 0, 3)[0]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1]] * 3
    assert (batch.targets >= 0).all()  # a packed stream has no padding
    loader.close()


def test_the_batch_has_one_checksum_for_every_rank_and_cut(mixture):
    checksums = set()
    for rank, world_size, micro_batch_size in ((0, 1, 8), (0, 2, 2), (1, 2, 4), (3, 8, 1)):
        loader = loader_of(mixture, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        loader.step(0, 16, 8)
        checksums.add(loader.samples_crc32)
        loader.close()
    assert len(checksums) == 1
    loader = loader_of(mixture, micro_batch_size=8)
    loader.step(0, 24, 8)
    assert loader.samples_crc32 not in checksums
    loader.close()


def test_what_was_read_ahead_is_read_again_for_another_mixture(mixture):
    other = mixture_of({"zh": 500, "en": 300}, ["zh: 1"] * 2, samples=[240, 240], seq_len=SEQ_LEN)
    loader = loader_of(mixture)
    loader.step(0, 0, 8)
    loader.follow(other)
    named = other.batch(0, 8, 8)
    assert rows_of(loader.step(0, 8, 8)).tolist() == (named.source * 10**6 + named.index * SEQ_LEN).tolist()
    loader.close()
