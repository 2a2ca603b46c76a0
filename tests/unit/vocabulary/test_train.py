"""Training a vocabulary: LLaMA's layout, the same from the same input, fair to small files."""

from __future__ import annotations

import json
import re

import pytest
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.text.documents import DocumentFormat
from tokenization.text.texts import Texts
from tokenization.tokenizer.files import open_tokenizer
from tokenization.vocabulary import train

LINES = [f"line {index} of 中文 text {index * index}" for index in range(500)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(LINES))
    (tmp_path / "in" / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"{line}\n再来"}) + "\n" for line in LINES)
    )
    return tmp_path / "in"


def test_llamas_layout(tmp_path, corpus):
    made = train.train_vocabulary([corpus], 300, tmp_path / "out")
    opened = open_tokenizer(tmp_path / "out")
    pieces = opened.pieces
    assert (len(pieces), made.pieces, made.files) == (300, 300, 2)
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert opened.eos_id == 2
    assert not any(len(piece) > 1 and any(char.isdigit() for char in piece) for piece in pieces[259:])
    rules = opened.model.normalizer_spec
    assert (rules.name, rules.add_dummy_prefix, rules.remove_extra_whitespaces) == ("identity", True, False)
    assert opened.model.trainer_spec.model_type == spm.TrainerSpec.BPE
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert made.fingerprint == open_tokenizer(tmp_path / "out" / "tokenizer.model").fingerprint


def test_the_same_input_gives_the_same_model(tmp_path, corpus):
    for name, threads in (("one", 1), ("two", 2), ("three", 4)):
        train.train_vocabulary([corpus], 300, tmp_path / name, threads=threads, sample_bytes=9000, seed=5)
    train.train_vocabulary([corpus], 300, tmp_path / "other", sample_bytes=9000, seed=6)
    moved = corpus.rename(tmp_path / "elsewhere")
    train.train_vocabulary([moved], 300, tmp_path / "four", sample_bytes=9000, seed=5)
    prints = {
        name: open_tokenizer(tmp_path / name).fingerprint for name in ("one", "two", "three", "four", "other")
    }
    assert len({prints[name] for name in ("one", "two", "three", "four")}) == 1
    assert prints["other"] != prints["one"]


def test_small_files_are_not_drowned(tmp_path):
    (tmp_path / "large.txt").write_text("".join(f"large {index:06d}\n" for index in range(5000)))
    (tmp_path / "small.txt").write_text("small one\nsmall two\n")
    (tmp_path / "middle.txt").write_text("".join(f"middle {index:06d}\n" for index in range(100)))
    lines, files, held = train.sample(Texts([tmp_path], DocumentFormat(txt="lines")), 3000, seed=0)
    count = {name: sum(line.startswith(name) for line in lines) for name in ("large", "small", "middle")}
    # small has 18 bytes and middle 1,300 of its half of the rest; large gets what is left, 12 a line
    assert count == {"small": 2, "middle": 100, "large": (3000 - 18 - 1300) // 12}
    assert files == 3
    assert held == sum(len(line) for line in lines) <= 3000
    assert [line for line in lines if line.startswith("large")] == sorted(
        line for line in lines if line.startswith("large")
    )


def test_a_draw_is_spread_over_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{index:05d}\n" for index in range(10000)))
    lines, _, _ = train.sample(Texts([tmp_path], DocumentFormat(txt="lines")), 5000, seed=1)
    quarters = [
        sum(2500 * quarter <= int(line) < 2500 * (quarter + 1) for line in lines) for quarter in range(4)
    ]
    assert sum(quarters) == 1000
    assert all(180 <= quarter <= 320 for quarter in quarters)  # 250 expected, five standard deviations of 14


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (-1, r"--size: -1 is too small: there are (\d+) single pieces; give \1 or more$"),
        (0, r"--size: 0 is too small: there are (\d+) single pieces; give \1 or more$"),
        (2, r"--size: 2 is too small: there are (\d+) single pieces; give \1 or more$"),
        (10**12, r"--size: 1000000000000 is more than this text gives; give (\d+) or less, or more text$"),
        (100, r"--size: 100 is too small: there are (\d+) single pieces; give \1 or more$"),
        (90000, r"--size: 90000 is more than this text gives; give (\d+) or less, or more text$"),
    ],
)
def test_sizes_that_cannot_be_are_told_with_one_that_can(tmp_path, corpus, size, message):
    with pytest.raises(UserError, match=message) as refused:
        train.train_vocabulary([corpus], size, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    possible = int(re.search(message, str(refused.value))[1])
    assert train.train_vocabulary([corpus], possible, tmp_path / "out").pieces == possible


def test_what_is_left_out_is_told_or_refused(tmp_path, corpus):
    (corpus / ".hidden.txt").write_text("hidden")
    (corpus / "c.jsonl").write_text('{"content": "x"}\n' * 100)
    made = train.train_vocabulary([corpus], 300, tmp_path / "out")
    assert made.left_out == [
        "left out 1 hidden file(s) or folder(s): .hidden.txt",
        "left out 100 of 1,100 records: has no field 'text' (c.jsonl)",
    ]
    assert made.to_json()["left_out"] == made.left_out
    assert all(line in made.to_text() for line in made.left_out)
    with pytest.raises(
        UserError, match=r"c\.jsonl:1: has no field 'text': 100 of 1,100 records are not.* 99 are"
    ):
        train.train_vocabulary([corpus], 300, tmp_path / "none", max_rejects=99)
    assert not (tmp_path / "none").exists()


def test_text_in_another_encoding(tmp_path):
    (tmp_path / "in").mkdir()
    for name, encoding in (("a", "gb18030"), ("b", "gb18030"), ("c", "utf-8")):
        lines = [f"第{index}条 这是我们中国的法律，在这里不能说了就可以" for index in range(200)]
        (tmp_path / "in" / f"{name}.txt").write_text("\n".join(lines), encoding=encoding)
    with pytest.raises(
        UserError, match=r"a\.txt:1: is not UTF-8 but gb18030: .*; give --encoding gb18030 \(or"
    ):
        train.train_vocabulary([tmp_path / "in"], 300, tmp_path / "out")
    made = train.train_vocabulary([tmp_path / "in"], 300, tmp_path / "out", encoding="gb18030")
    assert (made.left_out, made.sample_lines) == ([], 600)


def test_no_text_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match="has no line of text"):
        train.train_vocabulary([tmp_path / "a.jsonl"], 300, tmp_path / "out")
