"""Streams: whatever a file is packed and written in comes out as UTF-8, and what is damaged is named."""

from __future__ import annotations

import codecs
import gzip
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tokenization import documents, records, streams
from tokenization.documents import Format
from tokenization.errors import UserError
from tokenization.streams import check_encoding, guess_encoding, unpack

CHINESE = "我们在这里说的是中国的话，他们来了以后就会学。\n\n第二段是不一样的。"
TRADITIONAL = "我們在這裡說的是中國的話，他們來了以後就會學。"


def streamed(path, encoding="utf-8"):
    with unpack(str(path), encoding) as file:
        return file.read()


def frames(data, cut=3, **parameters):
    """As parallel compressors write: several frames, and one that is to be skipped."""
    step = len(data) // cut + 1
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(write_content_size=0, **parameters)
    )
    parts = [packer.compress(data[at : at + step]) for at in range(0, len(data), step)]
    return b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc".join(parts)


@given(st.binary(max_size=200), st.integers(1, 5))
def test_zstd_frames_give_what_was_packed(tmp_path_factory, data, cut):
    file = tmp_path_factory.mktemp("zstd") / "a.txt.zst"
    file.write_bytes(frames(data, cut))
    assert streamed(file) == data


def test_a_zstd_window_may_be_as_long_as_there_are(tmp_path):
    (tmp_path / "a.zst").write_bytes(frames(b"long " * 1000, 1, window_log=31))
    assert streamed(tmp_path / "a.zst") == b"long " * 1000


@pytest.mark.parametrize("ending", [".gz", ".zst", ".zstd"])
@pytest.mark.parametrize("left", [1, 4, 20])
def test_what_is_cut_short_is_named(tmp_path, ending, left):
    data = b"".join(b"%d " % (n * n) for n in range(2000))
    packed = gzip.compress(data) if ending == ".gz" else zstandard.compress(data)
    (tmp_path / f"a{ending}").write_bytes(packed[:-left])
    with pytest.raises(UserError, match=f"a{ending}: is damaged or cut short"):
        streamed(tmp_path / f"a{ending}")


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "encoding", ["gb18030", "gbk", "big5", "utf-16", "utf-16-le", "utf-32", "hz", "utf-7"]
)
def test_any_encoding_comes_as_utf_8(tmp_path, encoding, packed):
    text = TRADITIONAL * 2000 if encoding == "big5" else CHINESE * 2000
    data = text.encode(encoding)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    (tmp_path / f"a.txt{packed}").write_bytes(pack(data))
    assert streamed(tmp_path / f"a.txt{packed}", encoding).decode() == text


@given(text=st.text(st.characters(codec="gb18030"), max_size=40), before=st.integers(0, 3))
def test_utf_8_stays_utf_8_whatever_encoding_others_have(tmp_path_factory, text, before):
    """Read as GB18030 it would be another text, without any error."""
    file = tmp_path_factory.mktemp("mixed") / "a.txt"
    file.write_bytes(b"ascii\n" * before + text.encode())
    assert streamed(file, "gb18030") == b"ascii\n" * before + text.encode()


def test_damaged_utf_8_is_not_read_as_another_encoding(tmp_path):
    data = (CHINESE * 20).encode() + b"\xff" + CHINESE.encode()
    (tmp_path / "a.txt").write_bytes(data)
    assert streamed(tmp_path / "a.txt", "gb18030") == data
    assert streamed(tmp_path / "a.txt", "latin-1") == data


def test_the_first_text_beyond_ascii_decides_however_late_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_CHUNK", 10)
    for name, text in (("gb.txt", CHINESE.encode("gb18030")), ("utf.txt", CHINESE.encode())):
        (tmp_path / name).write_bytes(b"ascii only\n" * 50 + text)
        assert streamed(tmp_path / name, "gb18030").decode() == "ascii only\n" * 50 + CHINESE


@pytest.mark.parametrize(("txt", "whole"), [("lines", False), ("blocks", False), ("file", True)])
def test_what_is_not_text_in_the_encoding_either_is_a_reject(tmp_path, txt, whole):
    text = CHINESE.encode("gb18030") + b"\n\n\xff\xff\n\n" + CHINESE.encode("gb18030")
    (tmp_path / "a.txt").write_bytes(text)
    format = Format(txt=txt, encoding="gb18030")
    batches = [
        records.read(block, format)
        for block in documents.blocks(documents.plan([tmp_path], format), format, 7)
    ]
    texts = [text for batch in batches for text in batch.texts]
    rejects = [reject for batch in batches for reject in batch.rejects]
    assert texts == ([] if whole else 2 * CHINESE.split("\n\n"))
    ((reject, line),) = records.number(rejects, "gb18030")
    assert (reject.why, line) == ("is neither UTF-8 nor gb18030", 1 if whole else 5)


def test_json_lines_in_another_encoding(tmp_path):
    line = json.dumps({"text": CHINESE}, ensure_ascii=False)
    (tmp_path / "a.json").write_text(f"{line}\n{line}\n", encoding="gb18030")
    format = Format(encoding="gb18030")
    (block,) = documents.blocks(documents.plan([tmp_path], format), format)
    assert records.read(block, format).texts == [CHINESE] * 2


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (CHINESE.encode("gb18030"), "gb18030"),
        (CHINESE.encode("gbk") + b"\xff\xff", "gb18030"),
        (TRADITIONAL.encode("big5"), "big5"),
        (TRADITIONAL.encode("gb18030"), "gb18030"),
        (codecs.BOM_UTF16_LE + CHINESE.encode("utf-16-le"), "utf-16"),
        ("déjà vu, où çà".encode("latin-1"), None),
        (CHINESE.encode() + b"\xff", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_encodings_are_guessed_only_where_something_speaks_for_one(data, encoding):
    assert guess_encoding(data) == encoding


@pytest.mark.parametrize(
    ("name", "usual"), [("GB18030", "gb18030"), ("UTF8", "utf-8"), ("utf-8-sig", "utf-8"), ("GBK", "gbk")]
)
def test_encodings_have_many_names(name, usual):
    assert check_encoding(name) == usual


@pytest.mark.parametrize("name", ["hex", "zz", "", "klingon", "rot13", "undefined"])
def test_what_is_no_encoding_of_text_is_refused(name):
    with pytest.raises(UserError, match=r"--encoding: '.*' is not a text encoding"):
        check_encoding(name)
