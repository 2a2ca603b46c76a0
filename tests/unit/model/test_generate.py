"""A corpus drawn from a tiny model: the same bytes after any kill, ordinary shards, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers.model_tiny import CHINESE, ENGLISH, exported_tiny, recipe, tokenizer
from tokenization.errors import UserError
from tokenization.shards.store import inspect_shard, open_tokens, verify_shard
from tokenization.tokenizer.files import open_tokenizer
from trainer.cli.main import main
from trainer.machine.ranks import World
from trainer.model import drawn
from trainer.model.drawn import Journal, keep_documents
from trainer.model.extend import extend_model
from trainer.model.generate import finished_shard, generate_corpus, open_base
from trainer.plan.data import open_validation

TOKENS = 1_500


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model with random weights, whose documents have some hundred tokens."""
    return exported_tiny(tmp_path_factory.mktemp("base"))


def opened(base, ranks=1, tokens=TOKENS, seed=0, **changes):
    return open_base(str(base), tokens, 1.0, seed, ranks, 8, None, **changes)


def generated(base, prefix, ranks=2, **changes):
    """Every rank after the other, as a job array would run them."""
    worlds = [World(rank, rank, ranks) for rank in range(ranks)]
    metas = [generate_corpus(opened(base, ranks, **changes), prefix, world) for world in worlds]
    assert metas[:-1] == [None] * (ranks - 1)
    return metas[-1]


def content(prefix):
    return {end: prefix.with_name(prefix.name + end).read_bytes() for end in (".bin", ".idx", ".json")}


def test_what_is_written_is_an_ordinary_shard_that_tells_what_made_it(base, tmp_path, capsys):
    words = ["--model", str(base), "--tokens", str(TOKENS), "--out", str(tmp_path / "own"), "--nproc", "1"]
    assert main(["data", "generate", *words, "--batch", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    verify_shard(tmp_path / "own")
    store = open_tokens(tmp_path / "own")
    assert TOKENS <= store.tokens < TOKENS + 8 * 64
    assert store.tokenizer == open_tokenizer(base).fingerprint
    counts = told["generated"]["documents"]
    assert counts["drawn"] - counts["empty"] - counts["loops"] - counts["repeated"] == store.documents
    assert (told["generated"]["model"], told["generated"]["starts_with"]) == (str(base), "<s>")
    assert told["utf8_bytes"] > 0
    assert "generated    temperature 1.0" in inspect_shard(tmp_path / "own").to_text()
    ids = store.read(0, store.tokens)
    assert not np.isin(ids, [0, 1]).any(), "neither <unk> nor <s> is text"
    assert not (tmp_path / "own.generating").exists()
    before = content(tmp_path / "own")
    assert main(["data", "generate", *words, "--batch", "8"]) == 0  # finished: nothing is drawn
    assert content(tmp_path / "own") == before


def test_the_same_seed_and_world_size_give_the_same_text_and_others_give_another(base, tmp_path):
    first = generated(base, tmp_path / "a")
    assert generated(base, tmp_path / "b") == first
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert generated(base, tmp_path / "c", seed=1).checksum != first.checksum
    assert generated(base, tmp_path / "d", ranks=1).checksum != first.checksum


@pytest.mark.parametrize("torn", ["record", "ids", "between", "nothing"])
def test_a_kill_changes_nothing(base, tmp_path, monkeypatch, torn):
    generated(base, tmp_path / "whole")
    real, calls = Journal.append, []

    def killed(journal, documents, counts):
        calls.append(1)
        if len(calls) == 2:
            if torn != "between":
                real(journal, documents, counts)
            if torn == "record":
                journal.records.write_bytes(journal.records.read_bytes()[:-7])
            if torn == "ids":
                journal.records.write_bytes(b"".join(journal.records.read_bytes().splitlines(True)[:-1]))
                journal.ids.write_bytes(journal.ids.read_bytes()[:-3])
            raise KeyboardInterrupt
        real(journal, documents, counts)

    with monkeypatch.context() as patch:
        patch.setattr(drawn.Journal, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            generate_corpus(opened(base, 2), tmp_path / "own", World(0, 0, 2))
    assert not (tmp_path / "own.json").exists()
    generated(base, tmp_path / "own")
    assert content(tmp_path / "own") == content(tmp_path / "whole")


def test_what_two_ranks_drew_alike_is_kept_once_and_made_up_for(base, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.model.generate.xxhash.xxh3_64_intdigest", same_for_all_ranks)
    meta = generated(base, tmp_path / "own")
    counts = meta.generated["documents"]
    assert meta.tokens >= TOKENS
    assert counts["repeated"] > 3
    assert counts["drawn"] - counts["empty"] - counts["loops"] - counts["repeated"] == meta.documents
    ids = open_tokens(tmp_path / "own").read(0, meta.tokens)
    documents = [bytes(one) for one in np.split(ids, np.flatnonzero(ids == 2) + 1)]
    assert len(set(documents)) == len(documents)


def same_for_all_ranks(text: bytes) -> int:
    _, rank, batch = map(int, text.split())
    return 2 * (batch + 1000 * (rank == 2))


def test_empty_documents_loops_and_copies_are_dropped_and_counted():
    how = opened_rules()
    kept, counts = keep_documents([[5, 6], [], [7] * 60, [5, 6], [8] * 9 + [9]], how, set())
    assert [one.tolist() for one in kept] == [[5, 6, 2], [8] * 9 + [9, 2]]
    assert (counts.drawn, counts.empty, counts.loops, counts.repeated, counts.cut) == (5, 1, 1, 1, 1)


def opened_rules():
    from trainer.model.sampling import SamplingRules

    return SamplingRules(1.0, 10, 1, 2, [True] * 10)


def test_another_job_or_another_shard_at_the_prefix_is_never_touched(base, tmp_path):
    generated(base, tmp_path / "own", ranks=1)
    before = content(tmp_path / "own")
    with pytest.raises(UserError, match=r"--out: '.*own' holds a corpus of another seed; give"):
        finished_shard(tmp_path / "own", opened(base, seed=3).job)
    with pytest.raises(UserError, match="holds a corpus of another seed"):
        generate_corpus(opened(base, seed=3), tmp_path / "own", World())
    generate_corpus(opened(base, 2), tmp_path / "two", World(0, 0, 2))
    with pytest.raises(UserError, match=r"holds an unfinished corpus with tokens 1500 and not 5000; finish"):
        generate_corpus(opened(base, 2, tokens=5000), tmp_path / "two", World(0, 0, 2))
    side = json.loads(before[".json"])
    del side["generated"]
    (tmp_path / "own.json").write_text(json.dumps(side))
    with pytest.raises(UserError, match="holds a shard that was not generated"):
        finished_shard(tmp_path / "own", opened(base).job)


def test_a_model_that_writes_nothing_ends_the_job(base, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.model.generate.sample_documents", lambda hf, how, count, seed: [[]] * count)
    with pytest.raises(UserError, match=r"writes next to nothing that can be kept: of 1,0\d\d documents"):
        generate_corpus(opened(base), tmp_path / "own", World())
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "nothing")


def test_a_document_longer_than_the_context_is_refused(base, capsys, tmp_path):
    words = ["--model", str(base), "--tokens", "9", "--out", str(tmp_path / "own"), "--longest", "64"]
    assert main(["data", "generate", *words]) == 2
    assert "--longest: 64 does not fit into the model's context of 64 positions" in capsys.readouterr().err


def test_rows_that_nobody_has_trained_are_not_drawn(base, tmp_path):
    tokenizer(tmp_path / "grown", *ENGLISH, *CHINESE)
    extend_model(base, tmp_path / "grown", tmp_path / "extended")
    own, extended = open_base(str(base), 9, 1.0, 0, 1, 8, None), opened(tmp_path / "extended")
    assert extended.job.pieces == own.job.pieces
    assert extended.tokenizer.size == own.tokenizer.size + len(CHINESE)
    assert not any(extended.rules.allowed[own.tokenizer.size :])
    meta = generate_corpus(extended, tmp_path / "own", World())
    ids = open_tokens(tmp_path / "own").read(0, meta.tokens)
    assert ids.max() < own.tokenizer.size
    assert meta.tokenizer == open_tokenizer(tmp_path / "grown").fingerprint


def test_what_rewarm_has_trained_begins_behind_eos(tmp_path):
    trained = exported_tiny(tmp_path, state={"settings": {"seq_len": 16}})
    assert opened(trained).rules.start_id == 2


def test_scores_on_generated_text_are_refused(base, tmp_path):
    generated(base, tmp_path / "own", ranks=1)
    asked = recipe(f"validation.upstream={tmp_path / 'own'}")
    with pytest.raises(UserError, match=r"validation.upstream: .* was written by the model .* true text"):
        open_validation(asked)
