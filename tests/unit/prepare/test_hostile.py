"""Whatever the input files hold, `data prepare` writes shards below --out or says what is wrong."""

import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import vocabularies
from tokenization.errors import RewarmError
from tokenization.prepare.prepare import prepare
from tokenization.shards.store import open_tokens, verify_shard

LINES = "".join(
    json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("the 中国", "", "a。", "the")
)


def parquet():
    held = io.BytesIO()
    pq.write_table(pa.table({"text": ["the 中国", None, "a。"]}), held)
    return held.getvalue()


FILES = {
    "a.txt": "the 中国\n\na。\n".encode(),
    "a.jsonl": LINES.encode(),
    "a.json": LINES.encode(),
    "a.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "a.jsonl.zst": zstandard.compress(LINES.encode()),
    "a.txt.gz": gzip.compress("the 中国".encode(), mtime=0),
    "a.parquet": parquet(),
}

RECORDS = st.sampled_from(
    [
        *('{"text": 1}', '{"text": null}', "{}", "[]", "null", '{"text": "\\ud800"}', '{"text": "\\u0000"}'),
        *(
            "[" * 2000,
            '{"text": ' * 2000,
            '{"text": "a"',
            "\x00",
            "\ufeff{}",
            '{"text": "a"}x',
            '{"other": 1, "text": "a"}',
        ),
        *(
            '{"text": "' + "a" * 5000 + '"}',
            '{"text": ["a"]}',
            '{"text": "../../etc/passwd"}',
            "NaN",
            "\r",
            "1e999",
        ),
    ]
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return vocabularies.saved(tmp_path_factory.mktemp("tokenizer"), vocabularies.BASE)


def prepared(folder, tokenizer, **options):
    """Prepare what is in the folder; no file may appear but below the folder of --out."""
    before = sorted(path for path in folder.rglob("*") if "out" not in path.parts)
    out = folder / "out" / "x"
    try:
        prepare([folder / "in"], tokenizer, out, progress=False, **options)
    except RewarmError as error:
        assert "\n" not in str(error) or len(str(error)) < 5000  # noqa: PT017
    else:
        assert open_tokens(out).documents >= 0
        verify_shard(out)
    assert sorted(path for path in folder.rglob("*") if "out" not in path.parts) == before
    for path in sorted((folder / "out").rglob("*"), reverse=True) if (folder / "out").is_dir() else ():
        path.unlink()


OURS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@OURS
@given(data=st.data())
def test_damaged_files_of_every_kind(tokenizer, tmp_path, data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    held = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(0, 4))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    held = bytes(held[: len(held) - data.draw(st.sampled_from([0, 0, 1, 9, len(held)]))])
    (tmp_path / "in").mkdir(exist_ok=True)
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    (tmp_path / "in" / name).write_bytes(held)
    prepared(tmp_path, tokenizer, max_rejects=data.draw(st.sampled_from([None, 0, 100])))


@OURS
@given(records=st.lists(RECORDS, min_size=1, max_size=6), kind=st.sampled_from(["jsonl", "txt", "json"]))
def test_hostile_records(tokenizer, tmp_path, records, kind):
    (tmp_path / "in").mkdir(exist_ok=True)
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    (tmp_path / "in" / f"a.{kind}").write_bytes("\n".join(records).encode("utf-8", "surrogatepass"))
    prepared(tmp_path, tokenizer, max_rejects=100, txt="lines" if kind == "txt" else "file")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_what_is_not_a_regular_file_is_neither_read_nor_waited_for(tokenizer, tmp_path, name):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / name)
    (tmp_path / "in" / "b.txt").write_text("the")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.txt").symlink_to(tmp_path / "nowhere")
    prepared(tmp_path, tokenizer)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_a_small_file_that_unpacks_to_a_large_one_is_streamed_or_refused(tokenizer, tmp_path, pack):
    (tmp_path / "in").mkdir()
    ending = "gz" if pack is gzip.compress else "zst"
    (tmp_path / "in" / f"bomb.jsonl.{ending}").write_bytes(pack(b'{"text": "' + b"a" * (300 << 20)))
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepared(tmp_path, tokenizer)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


@pytest.mark.parametrize("out", ["in/a.txt/x", "", "/", "a/" + "b" * 300])
def test_a_prefix_that_cannot_be_written_is_a_line(tokenizer, tmp_path, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("the")
    with pytest.raises(RewarmError):
        prepare([tmp_path / "in"], tokenizer, out, progress=False)
