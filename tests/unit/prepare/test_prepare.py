"""Preparing a corpus: the same bytes however it is run, every record counted, nothing half looks whole."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import socket
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from tokenization.errors import InfrastructureError, UserError, UserErrors
from tokenization.prepare.prepare import parse_part, prepare
from tokenization.prepare.workers import held_out
from tokenization.shards.store import open_tokens, verify_shard
from tokenization.tokenizer import encoder, engines, files
from tokenization.vocabulary.train import train_vocabulary

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "中国",
    "人民",
    "法律",
    "规定",
    "应当",
]


def sentence(index):
    return " ".join(WORDS[(index * 7 + place * place) % len(WORDS)] for place in range(3 + index % 9))


TEXTS = [f"{index} {sentence(index)}" for index in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("\n".join(TEXTS))
    train_vocabulary([folder / "text.txt"], 360, folder / "out")
    return folder / "out"


@pytest.fixture(autouse=True)
def short_lines(monkeypatch):
    """The lines of 1 MB have their own test; here they would only take time."""
    monkeypatch.setattr(encoder, "long_lines", lambda: [])


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(6):
        lines = [json.dumps({"text": text}) for text in TEXTS[file * 50 : (file + 1) * 50]]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(corpus, tokenizer, out, **options):
    return prepare([corpus], tokenizer, out, progress=False, **options)


def decoded(prefix, tokenizer):
    """The texts of a store, by SentencePiece alone."""
    store = open_tokens(prefix)
    ids = store.read(0, store.tokens)
    starts = [*store.document_starts(0, store.tokens), store.tokens]
    processor = encoder.reference(files.open_tokenizer(tokenizer))._processor
    rows = [ids[start:stop] for start, stop in itertools.pairwise(starts)]
    assert all(row[-1] == 2 for row in rows)
    return [processor.decode(row[:-1].tolist()) for row in rows]


def bytes_of(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix in (".bin", ".idx") or (path.suffix == ".json" and "prepared" not in path.name)
    }


def test_every_document_in_order_with_sentencepieces_ids(tmp_path, corpus, tokenizer):
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS
    opened = files.open_tokenizer(tokenizer)
    ids = [index for row in engines.split(encoder.reference(opened).encode(TEXTS)) for index in [*row, 2]]
    store = open_tokens(tmp_path / "out" / "a")
    assert store.read(0, store.tokens).tolist() == ids
    assert (made.documents, made.tokens) == (300, len(ids))
    assert made.utf8_bytes == store.utf8_bytes == sum(len(text.encode()) for text in TEXTS)
    assert store.tokenizer == opened.fingerprint
    assert made.engine == "gigatoken"
    verify_shard(tmp_path / "out" / "a")


@pytest.mark.parametrize("options", [{}, {"validation": 0.2}, {"dedup": True, "validation": 0.1}])
def test_workers_and_parts_do_not_change_the_bytes(tmp_path, corpus, tokenizer, options):
    (corpus / "6.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[::3]))
    for index in (3, 1, 2):  # as an array job may run them
        run(corpus, tokenizer, tmp_path / "array" / "a", part=(index, 3), **options)
    for index in (1, 2, 3):
        run(corpus, tokenizer, tmp_path / "two" / "a", part=(index, 3), workers=2, **options)
    assert bytes_of(tmp_path / "array") == bytes_of(tmp_path / "two")
    run(corpus, tokenizer, tmp_path / "one" / "a", **options)
    for prefix in ("a", "a-validation") if "validation" in options else ("a",):
        whole, parts = (open_tokens(tmp_path / name / prefix) for name in ("one", "array"))
        assert np.array_equal(whole.read(0, whole.tokens), parts.read(0, parts.tokens))
        assert whole.documents == parts.documents


def test_duplicates_keep_the_first(tmp_path, corpus, tokenizer):
    doubled = [TEXTS[3], "new", TEXTS[250], "new"]
    (corpus / "a-last.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in doubled))
    made = run(corpus, tokenizer, tmp_path / "out" / "a", dedup=True)
    assert decoded(tmp_path / "out" / "a", tokenizer) == [*TEXTS, "new"]
    assert made.duplicates == 3


def test_duplicates_are_found_across_buckets_on_the_disk(tmp_path, corpus, tokenizer, monkeypatch):
    from tokenization.prepare import duplicates

    monkeypatch.setattr(duplicates, "_HELD", 70)
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
    monkeypatch.setattr(duplicates, "_HELD", 70)
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


def test_validation_is_stable_when_files_are_added(tmp_path, corpus, tokenizer):
    made = run(corpus, tokenizer, tmp_path / "out" / "a", validation=Fraction(1, 5))
    train, validation = (decoded(tmp_path / "out" / name, tokenizer) for name in ("a", "a-validation"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert (len(train), len(validation)) == (made.documents, made.validation_documents)
    assert 30 <= len(validation) <= 90  # 60 expected, four standard deviations of 7
    (corpus / "0-before.jsonl").write_text('{"text": "something new"}\n')
    run(corpus, tokenizer, tmp_path / "more" / "a", validation=Fraction(1, 5))
    more = decoded(tmp_path / "more" / "a-validation", tokenizer)
    assert [text for text in more if text in TEXTS] == validation


def test_the_validation_share_is_what_was_asked_for():
    taken = held_out([f"document {index}" for index in range(20000)], Fraction("0.005"))
    assert 60 <= taken.sum() <= 140  # 100 expected, four standard deviations of 10
    assert not held_out(["a"], Fraction(0)).any()


def test_a_restart_redoes_only_what_is_missing(tmp_path, corpus, tokenizer):
    first = run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2))
    stamp = (tmp_path / "out" / "a-00000-of-00002.bin").stat().st_mtime_ns
    again = run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2))
    assert (again.documents, again.tokens, again.finished_before) == (first.documents, first.tokens, 1)
    assert again.engine == ""
    assert (tmp_path / "out" / "a-00000-of-00002.bin").stat().st_mtime_ns == stamp
    before = bytes_of(tmp_path / "out")
    (tmp_path / "out" / "a-00000-of-00002.json").unlink()  # as if the kill had come before the side file
    assert run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2)).finished_before == 0
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["a.bin", "a.idx", "a-validation.bin"])
@pytest.mark.parametrize("cut", [None, 10])
def test_a_part_that_is_not_whole_is_done_again(tmp_path, corpus, tokenizer, name, cut):
    run(corpus, tokenizer, tmp_path / "out" / "a", validation=0.5)
    before = bytes_of(tmp_path / "out")
    if cut is None:
        (tmp_path / "out" / name).unlink()
    else:
        (tmp_path / "out" / name).write_bytes(before[name][:cut])
    assert run(corpus, tokenizer, tmp_path / "out" / "a", validation=0.5).finished_before == 0
    assert bytes_of(tmp_path / "out") == before


def test_counts_that_cannot_be_read_are_none(tmp_path, corpus, tokenizer):
    run(corpus, tokenizer, tmp_path / "out" / "a")
    (tmp_path / "out" / "a.prepared.json").write_text("")
    with pytest.raises(UserError, match=r"a\.json: is the shard of another job"):
        run(corpus, tokenizer, tmp_path / "out" / "a")
    (tmp_path / "out" / "a.json").unlink()
    assert run(corpus, tokenizer, tmp_path / "out" / "a").documents == 300


@pytest.mark.parametrize("change", ["input", "tokenizer", "option"])
def test_another_job_does_not_overwrite(tmp_path, corpus, tokenizer, change):
    run(corpus, tokenizer, tmp_path / "out" / "a")
    options = {}
    if change == "input":
        (corpus / "new.jsonl").write_text('{"text": "new"}\n')
    elif change == "tokenizer":
        (tmp_path / "text.txt").write_text("\n".join(TEXTS[:100]))
        tokenizer = tmp_path / "other"
        train_vocabulary([tmp_path / "text.txt"], 330, tokenizer)
    else:
        options = {"validation": 0.5}
    with pytest.raises(UserError, match=r"a\.json: is the shard of another job"):
        run(corpus, tokenizer, tmp_path / "out" / "a", **options)
    run(corpus, tokenizer, tmp_path / "out" / "a", overwrite=True, **options)
    verify_shard(tmp_path / "out" / "a")


def test_other_parts_at_the_prefix_are_refused(tmp_path, corpus, tokenizer):
    run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2))
    with pytest.raises(UserError, match="holds 2 part"):
        run(corpus, tokenizer, tmp_path / "out" / "a")
    run(corpus, tokenizer, tmp_path / "out" / "a", overwrite=True)
    assert open_tokens(tmp_path / "out" / "a").documents == 300


def test_what_overwriting_a_part_would_not_remove_is_not_left_to_it(tmp_path, corpus, tokenizer):
    run(corpus, tokenizer, tmp_path / "out" / "a")
    with pytest.raises(UserError, match=r"remove their \.bin, \.idx and \.json, or .*--out$"):
        run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2), overwrite=True)
    for ending in ("bin", "idx", "json"):
        (tmp_path / "out" / f"a.{ending}").unlink()
    for number in (1, 2):
        run(corpus, tokenizer, tmp_path / "out" / "a", part=(number, 2), overwrite=True)
    assert open_tokens(tmp_path / "out" / "a").documents == 300


def test_overwriting_a_part_leaves_the_others_and_none_of_its_own(tmp_path, corpus, tokenizer):
    for number in (1, 2):
        run(corpus, tokenizer, tmp_path / "out" / "a", part=(number, 2), validation=0.5)
    before = bytes_of(tmp_path / "out")
    run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2), overwrite=True)
    after = bytes_of(tmp_path / "out")
    gone = {name for name in before if name.startswith("a-validation-00000-of-00002")}
    assert len(gone) >= 3
    assert after.keys() == before.keys() - gone
    assert all(after[name] == before[name] for name in after if "00001-of-00002" in name)


def test_overwriting_leaves_no_old_validation_shards(tmp_path, corpus, tokenizer):
    run(corpus, tokenizer, tmp_path / "out" / "a", validation=0.5, dedup=True)
    assert "a-validation.json" in bytes_of(tmp_path / "out")
    run(corpus, tokenizer, tmp_path / "out" / "a", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.bin",
        "a.idx",
        "a.json",
        "a.prepared.json",
    ]


def test_rejects_are_counted_and_shown(tmp_path, corpus, tokenizer):
    (corpus / "3.jsonl").write_bytes(b'{"text": "ok"}\n{"text": ""}\nbroken\n{"text": "\xff"}\n')
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert made.documents == 251
    assert made.rejects == {"is empty": 1, "is not JSON (Expecting value)": 1, "is not UTF-8": 1}
    shown = [json.loads(line) for line in (tmp_path / "out" / "a.rejects.jsonl").read_text().splitlines()]
    assert [(os.path.basename(row["file"]), row["line"], row["why"]) for row in shown] == [
        ("3.jsonl", 2, "is empty"),
        ("3.jsonl", 3, "is not JSON (Expecting value)"),
        ("3.jsonl", 4, "is not UTF-8"),
    ]
    assert made.rejects == run(corpus, tokenizer, tmp_path / "out" / "a").rejects


def test_too_many_rejects_end_the_job(tmp_path, corpus, tokenizer):
    (corpus / "3.jsonl").write_text("broken\n" * 3)
    run(corpus, tokenizer, tmp_path / "enough" / "a", max_rejects=3)
    with pytest.raises(
        UserError, match=r"3\.jsonl:1: is not JSON .*3 of 253 records are not documents.*2 are allowed"
    ):
        run(corpus, tokenizer, tmp_path / "out" / "a", max_rejects=2)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a.prepared.json", "a.rejects.jsonl"}


def write(folder, name, texts, **more):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))


@pytest.mark.parametrize(
    ("limit", "bad", "borne"),
    [
        (None, 33, True),  # 10 %: 33 of 333
        (None, 34, False),
        (Fraction(1, 2), 300, True),
        (Fraction(1, 2), 301, False),
        (Fraction(1, 100), 3, True),
        (Fraction(1, 100), 4, False),
        (7, 7, True),
        (7, 8, False),
        (0, 1, False),
        (Fraction(1), 5000, True),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_rejects_are_borne_up_to_a_number_or_a_share(tmp_path, corpus, tokenizer, limit, bad, borne, workers):
    (corpus / "3a.jsonl").write_text("broken\n" * bad)
    (corpus / "9.jsonl").write_text('{"text": " "}\n{"text": null}\n' * 500)  # which lose no text
    write(corpus, "9.jsonl", [" ", None] * 500)
    bad_share = bad / (1300 + bad)
    if limit is None or isinstance(limit, Fraction):  # of all records, the empty ones too
        borne = bad_share <= (Fraction(1, 10) if limit is None else limit)
    out = tmp_path / "out" / "a"
    if borne:
        made = run(corpus, tokenizer, out, max_rejects=limit, workers=workers)
        assert made.rejects["is not JSON (Expecting value)"] == bad
        assert decoded(out, tokenizer) == TEXTS
    else:
        with pytest.raises(
            UserError, match=rf"3a\.jsonl:1: is not JSON.*{bad:,} of .* records are not documents"
        ):
            run(corpus, tokenizer, out, max_rejects=limit, workers=workers)
        with pytest.raises(UserError):
            open_tokens(out)


def test_records_without_text_are_counted_and_lose_none(tmp_path, corpus, tokenizer):
    write(corpus, "9.jsonl", [" ", None, ""] * 700)
    made = run(corpus, tokenizer, tmp_path / "a", max_rejects=0)
    assert made.rejects == {"is empty": 1400, "is null": 700}
    assert "left out 1,400: is empty (9.jsonl)" in made.to_text()


def test_a_corpus_that_is_lost_is_not_read_to_its_end(tmp_path, tokenizer, monkeypatch):
    """The wrong --text-field of a terabyte is told after minutes."""
    from tokenization.prepare import workers as workers_

    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.jsonl").write_text('{"body": "x"}\n' * 100)
    write(folder, "99.jsonl", TEXTS)
    monkeypatch.setattr(workers_.tasks, "__defaults__", (1,))
    with pytest.raises(UserError, match=r"00\.jsonl:1: has no field 'text': 1,100 of 1,100 records are not"):
        run(folder, tokenizer, tmp_path / "out" / "a", max_rejects=Fraction(1, 10))


def books(folder, encoding, count, texts):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{encoding}-{number:02}.txt").write_text("\n".join(texts), encoding=encoding)


CHINESE = ["这是我们中国的第一条法律，人民在这里有了自己的规定。", "他们来到这个国家以后，不会说这是不对的。"]


@pytest.mark.parametrize("txt", ["file", "lines", "blocks"])
def test_books_in_another_encoding_are_named_with_the_option_that_reads_them(tmp_path, tokenizer, txt):
    books(tmp_path / "in", "gb18030", 60, CHINESE)
    books(tmp_path / "in", "utf-8", 1, CHINESE)
    told = r"gb18030-00\.txt:1: is not UTF-8 but gb18030.*are not documents.*; give --encoding gb18030"
    with pytest.raises(UserError, match=told):
        run(tmp_path / "in", tokenizer, tmp_path / "out" / "a", txt=txt)
    with pytest.raises(UserError):
        open_tokens(tmp_path / "out" / "a")
    run(tmp_path / "in", tokenizer, tmp_path / "out" / "a", txt=txt, encoding="GB18030")
    documents = CHINESE if txt == "lines" else ["\n".join(CHINESE)]
    assert decoded(tmp_path / "out" / "a", tokenizer) == documents * 61


def test_a_few_books_in_another_encoding_are_told_by_name(tmp_path, tokenizer):
    books(tmp_path / "in", "gb18030", 5, CHINESE)
    books(tmp_path / "in", "utf-8", 60, CHINESE)
    for again in range(2):
        made = run(tmp_path / "in", tokenizer, tmp_path / "out" / "a")
        assert made.finished_before == again
        assert (
            "left out 5: is not UTF-8 but gb18030 (gb18030-00.txt, gb18030-01.txt, gb18030-02.txt, …);"
            " give --encoding gb18030"
        ) in made.to_text()


def test_an_encoding_is_an_option_of_the_job(tmp_path, corpus, tokenizer):
    run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2))
    with pytest.raises(UserError, match=r"--encoding differ"):
        run(corpus, tokenizer, tmp_path / "out" / "a", part=(2, 2), encoding="gb18030")
    with pytest.raises(UserError, match=r"--encoding: 'klingon' is not a text encoding"):
        run(corpus, tokenizer, tmp_path / "out" / "b", encoding="klingon")


def test_the_input_folder_may_hold_the_output(tmp_path, corpus, tokenizer):
    write(corpus, "5a.jsonl", [None] * 20)
    run(corpus, tokenizer, corpus / "tokens", validation=0.1)
    first = bytes_of(corpus)
    assert (corpus / "tokens.rejects.jsonl").is_file()
    assert run(corpus, tokenizer, corpus / "tokens", validation=0.1).finished_before == 1
    run(corpus, tokenizer, corpus / "again", validation=0.1)
    assert {name.replace("again", "tokens"): data for name, data in bytes_of(corpus).items()} == first
    for number in (1, 2):
        run(corpus, tokenizer, corpus / "array", part=(number, 2), validation=0.1)
    one, array = (open_tokens(corpus / name) for name in ("tokens", "array"))
    assert np.array_equal(one.read(0, one.tokens), array.read(0, array.tokens))


@pytest.mark.parametrize(
    "change", ["a file arrives", "a file changes", "order", "dedup", "validation", "txt"]
)
def test_a_part_of_another_job_is_not_added_to_those_of_the_first(tmp_path, corpus, tokenizer, change):
    out, options, inputs = tmp_path / "out" / "a", {}, [corpus / "3.jsonl", corpus]
    prepare(inputs, tokenizer, out, part=(1, 3), progress=False)
    if change == "a file arrives":
        write(corpus, "2a.jsonl", TEXTS[:7])
    elif change == "a file changes":
        write(corpus, "3.jsonl", TEXTS[:7])
    elif change == "order":
        inputs = inputs[::-1]
    else:
        options = {"dedup": {"dedup": True}, "validation": {"validation": 0.5}, "txt": {"txt": "lines"}}[
            change
        ]
    with pytest.raises(
        UserError, match=r"a-00000-of-00003\.prepared\.json: is a part of another job: .* differ"
    ):
        prepare(inputs, tokenizer, out, part=(2, 3), progress=False, **options)
    for number in (1, 2, 3):
        prepare(inputs, tokenizer, out, part=(number, 3), progress=False, overwrite=True, **options)
    assert len(open_tokens(out).parts) == 3


@pytest.mark.parametrize("prefix", ["a", "a-validation"])
def test_parts_of_two_jobs_do_not_open_as_one_source(tmp_path, corpus, tokenizer, prefix):
    """As when both began at once, or were copied into one folder."""
    for name, number, options in (("one", 1, {}), ("two", 2, {"dedup": True})):
        run(corpus, tokenizer, tmp_path / name / "a", part=(number, 2), validation=0.5, **options)
    for file in (tmp_path / "two").iterdir():
        file.rename(tmp_path / "one" / file.name)
    with pytest.raises(UserError, match=rf"{prefix}-00001-of-00002\.json: is a part of another job"):
        open_tokens(tmp_path / "one" / prefix)


def test_parts_of_the_time_before_jobs_were_written_down_open(tmp_path, corpus, tokenizer):
    for number in (1, 2):
        run(corpus, tokenizer, tmp_path / "a", part=(number, 2))
    for side in tmp_path.glob("a-0000?-of-00002.json"):
        side.write_text(json.dumps({k: v for k, v in json.loads(side.read_text()).items() if k != "job"}))
    assert decoded(tmp_path / "a", tokenizer) == TEXTS


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "is a folder's name and not a prefix"),
        ("..", "is a folder's name"),
        ("/", "is a folder's name"),
        ("", "is a folder's name"),
        ("data/.", "is a folder's name"),
        ("text.txt/zh", "lies below .*text.txt, which is a file"),
        ("x" * 300, "has a name of more than 200 bytes"),
    ],
)
def test_an_out_that_names_no_files_is_refused_before_the_work(
    tmp_path, tokenizer, monkeypatch, out, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"--out: '.*' {message}"):
        prepare(["text.txt"], tokenizer, out, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_wrong_field_is_told(tmp_path, corpus, tokenizer):
    with pytest.raises(UserError, match=r"has no field 'body': 300 of 300 records are not.*--text-field"):
        run(corpus, tokenizer, tmp_path / "out" / "a", text_field="body")


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "name files that hold text"),
        ('{"text": ""}\n', r"see the \.rejects\.jsonl beside --out"),
        ('{"text": null}\n', "is --text-field right"),
    ],
)
def test_what_to_do_without_a_document_follows_from_the_reason(tmp_path, tokenizer, text, fix):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"has no document.*; {fix}"):
        run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out" / "a")


def test_what_was_left_out_and_held_out_is_told(tmp_path, corpus, tokenizer):
    (corpus / "c.json").write_text("[]")
    told = run(corpus, tokenizer, tmp_path / "out" / "a", validation=Fraction(1, 10**9)).to_text()
    assert "left out 1 file(s) of other kinds: c.json" in told
    assert "validation: 0 documents, 0 tokens; give a larger --validation" in told
    assert "validation" not in run(corpus, tokenizer, tmp_path / "whole" / "a").to_text()


def test_rejects_of_a_file_whose_name_is_not_utf_8(tmp_path, corpus, tokenizer):
    name = os.fsdecode(b"\xff.jsonl")
    (corpus / name).write_text('broken\n{"text": "ok"}\n')
    (corpus / os.fsdecode(b"\xfe.json")).write_text("")
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert made.documents == 301
    assert made.to_text().encode()
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "a.rejects.jsonl").read_text().splitlines()]
    assert row["file"].endswith("/\\xff.jsonl")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, corpus, tokenizer, monkeypatch, name):
    opened = Path.open

    def closed(self, *arguments, **options):
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(Permission denied\)"):
        run(corpus, tokenizer, tmp_path / "out" / "a")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, corpus, tokenizer, monkeypatch, workers):
    real = os.fsync
    calls = 0

    def full(handle):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match="No space left"):
        run(corpus, tokenizer, tmp_path / "out" / "a", workers=workers)
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(UserError):
        open_tokens(tmp_path / "out" / "a")
    run(corpus, tokenizer, tmp_path / "out" / "a")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS


def test_an_engine_that_disagrees_is_dropped_with_a_line(tmp_path, corpus, tokenizer, monkeypatch):
    real = engines.GigatokenEngine.encode

    def wrong(self, texts):
        ids, lengths = real(self, texts)
        return np.where(ids == ids.max(), 3, ids), lengths

    monkeypatch.setattr(engines.GigatokenEngine, "encode", wrong)
    made = run(corpus, tokenizer, tmp_path / "out" / "a")
    assert made.engine == "sentencepiece"
    assert made.notes[0].startswith("gigatoken is not used: its ids differ from sentencepiece's on ")
    assert decoded(tmp_path / "out" / "a", tokenizer) == TEXTS
    with pytest.raises(UserError, match="--engine: 'gigatoken' cannot be the engine"):
        run(corpus, tokenizer, tmp_path / "out" / "b", engine="gigatoken")


def test_engines_by_name_give_the_same_bytes(tmp_path, corpus, tokenizer):
    for engine in ("gigatoken", "sentencepiece", "tokenizers"):
        assert run(corpus, tokenizer, tmp_path / engine / "a", engine=engine).engine == engine
    assert bytes_of(tmp_path / "gigatoken") == bytes_of(tmp_path / "sentencepiece")
    assert bytes_of(tmp_path / "gigatoken") == bytes_of(tmp_path / "tokenizers")
    with pytest.raises(UserError, match="is not one of"):
        run(corpus, tokenizer, tmp_path / "x" / "a", engine="fast")


def test_a_directory_with_only_tokenizer_json(tmp_path, corpus, tokenizer):
    only = tmp_path / "only"
    only.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (only / name).write_bytes((tokenizer / name).read_bytes())
    run(corpus, only, tmp_path / "json" / "a")
    run(corpus, tokenizer, tmp_path / "model" / "a")
    left, right = (open_tokens(tmp_path / name / "a") for name in ("json", "model"))
    assert np.array_equal(left.read(0, left.tokens), right.read(0, right.tokens))
    assert left.tokenizer == files.open_tokenizer(only).fingerprint


def test_a_byte_level_tokenizer(tmp_path, corpus):
    """As GPT-2, LLaMA-3 and SmolLM have it: no SentencePiece model, text split before it is merged."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    folder = tmp_path / "bytes"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="has no EOS token"):
        run(corpus, folder, tmp_path / "out" / "a")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (corpus / "odd.jsonl").write_text(
        json.dumps({"text": "!\0 !  \0"}) + "\n" + json.dumps({"text": "ends  "})
    )
    run(corpus, folder, tmp_path / "out" / "a")
    store = open_tokens(tmp_path / "out" / "a")
    expected = [index for text in [*TEXTS, "!\0 !  \0", "ends  "] for index in [*made.encode(text).ids, 0]]
    assert store.read(0, store.tokens).tolist() == expected
    assert store.eos_id == 0


def test_special_tokens_in_a_text_are_text(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "</s> the <s> fox <unk>"}))
    for engine in ("gigatoken", "sentencepiece", "tokenizers"):
        prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / engine, engine=engine, progress=False)
        store = open_tokens(tmp_path / engine)
        assert (store.read(0, store.tokens) == 2).sum() == 1


@pytest.mark.parametrize(("written", "read"), [("1/1", (1, 1)), ("3/8", (3, 8))])
def test_parts_are_written_from_one(written, read):
    assert parse_part(written) == read


@pytest.mark.parametrize("written", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_parts_that_are_none(written):
    with pytest.raises(UserError, match="--part"):
        parse_part(written)


def test_all_wrong_options_are_told_at_once(tmp_path, corpus, tokenizer):
    with pytest.raises(UserErrors) as caught:
        run(corpus, tokenizer, tmp_path / "a", workers=0, part=(3, 2), validation=1.5, max_rejects=-1)
    assert len(caught.value.problems) == 4
