"""Parts: finished ones are kept, incomplete ones are written again, and other jobs are refused."""

from __future__ import annotations

import json

import pytest

from tests.helpers.corpus import TEXTS, bytes_of, decoded, run, write
from tokenization.errors import UserError
from tokenization.prepare.prepare import prepare
from tokenization.shards.store import open_tokens, verify_shard
from tokenization.vocabulary.train import train_vocabulary


def test_a_restart_redoes_only_what_is_missing(tmp_path, corpus, tokenizer):
    first = run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2))
    stamp = (tmp_path / "out" / "a-00000-of-00002.bin").stat().st_mtime_ns
    assert "per token) in part 1 of 2\n" in first.to_text()
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
    line = r"a\.json: was written by another job, which differs in its inputs, tokenizer or options"
    with pytest.raises(UserError, match=line):
        run(corpus, tokenizer, tmp_path / "out" / "a")
    (tmp_path / "out" / "a.json").unlink()
    assert run(corpus, tokenizer, tmp_path / "out" / "a").documents == 300


@pytest.mark.parametrize(
    ("change", "differs"),
    [("input", "the files"), ("tokenizer", "the tokenizer"), ("option", "--validation")],
)
def test_another_job_does_not_overwrite_and_says_what_differs(tmp_path, corpus, tokenizer, change, differs):
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
    with pytest.raises(UserError, match=rf"a\.json: was written by another job, which differs in {differs};"):
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


def test_an_encoding_is_an_option_of_the_job(tmp_path, corpus, tokenizer):
    run(corpus, tokenizer, tmp_path / "out" / "a", part=(1, 2))
    with pytest.raises(UserError, match=r"differs in .*--encoding;"):
        run(corpus, tokenizer, tmp_path / "out" / "a", part=(2, 2), encoding="gb18030")
    with pytest.raises(UserError, match=r"--encoding: 'klingon' is not a text encoding"):
        run(corpus, tokenizer, tmp_path / "out" / "b", encoding="klingon")


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
        UserError, match=r"a-00000-of-00003\.prepared\.json: is a part of another job, which differs in "
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
