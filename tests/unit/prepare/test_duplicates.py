"""Duplicates: the first of equal documents is kept, however many processes search."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import socket

from tests.helpers.corpus import TEXTS, decoded, run


def test_duplicates_keep_the_first(tmp_path, corpus, tokenizer):
    doubled = [TEXTS[3], "new", TEXTS[250], "new"]
    (corpus / "a-last.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in doubled))
    made = run(corpus, tokenizer, tmp_path / "out" / "a", dedup=True)
    assert decoded(tmp_path / "out" / "a", tokenizer) == [*TEXTS, "new"]
    assert made.duplicates == 3


def test_duplicates_are_found_across_buckets_on_the_disk(tmp_path, corpus, tokenizer, monkeypatch):
    from tokenization.prepare import duplicates

    monkeypatch.setattr(duplicates, "_MOST_PENDING", 70)
    (corpus / "9.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS[100:], "new"])
    )
    made = run(corpus, tokenizer, tmp_path / "out" / "a", dedup=True)
    assert decoded(tmp_path / "out" / "a", tokenizer) == [*TEXTS, "new"]
    assert made.duplicates == 200


def test_array_tasks_without_file_locks_search_apart(tmp_path, corpus, tokenizer, monkeypatch):
    from tokenization.prepare import duplicates

    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    context = multiprocessing.get_context("fork")
    together, spill = context.Barrier(2, timeout=30), duplicates._spill

    def spill_together(folder, records):
        together.wait()
        spill(folder, records)
        together.wait()

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(duplicates, "_MOST_PENDING", 70)
    monkeypatch.setattr(duplicates, "_spill", spill_together)
    tasks = [
        context.Process(
            target=run, args=(corpus, tokenizer, tmp_path / "out" / "a"), kwargs={"part": part, "dedup": True}
        )
        for part in ((1, 2), (2, 2))
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert [task.exitcode for task in tasks] == [0, 0]
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS
    assert not list((tmp_path / "out").glob("*.partial*"))


def test_what_a_killed_search_left_is_removed(tmp_path, corpus, tokenizer):
    left = tmp_path / "out" / f"a.duplicates.npz.{socket.gethostname()}.1.partial.d"
    left.mkdir(parents=True)
    (left / "007").write_bytes(b"half")
    run(corpus, tokenizer, tmp_path / "out" / "a", dedup=True, part=(1, 2))
    assert not left.exists()
