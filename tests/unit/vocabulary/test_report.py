"""The report: figures by hand, and every guarantee seen broken."""

from __future__ import annotations

import io
import json
import os

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import open_tokenizer
from tokenization.vocabulary import extend, report, train
from tokenization.vocabulary.extend import unreachable

Piece = spm.ModelProto.SentencePiece
ENGLISH = [f"line {index} about the lazy dog and the quick brown fox" for index in range(200)]
CHINESE = [f"第{index}条 中华人民共和国公民的权利和义务由法律规定" for index in range(200)]
CHECKS = {
    "round trip": "decode to themselves",
    "transformers": "through transformers",
    "fast": "fast encoder",
    "base": "without an added character",
    "mixed": "as they may",
    "unreachable": "no text contains",
    "kept": "score or kind",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "en.txt").write_text("\n".join(ENGLISH))
    (folder / "zh.txt").write_text("\n".join(CHINESE))
    train.train_vocabulary([folder / "en.txt"], 320, folder / "base")
    train.train_vocabulary([folder / "zh.txt"], 330, folder / "add")
    extend.extend_vocabulary(folder / "base", folder / "add", folder / "out")
    return folder


def check(result, name):
    return next(check for check in result.checks if CHECKS[name] in check.name)


def test_a_sound_extension(folder):
    result = report.report_vocabulary(
        folder / "out", [folder / "en.txt", folder / "zh.txt"], against=folder / "base"
    )
    assert not result.broken
    assert [(check.failed, check.skipped) for check in result.checks if check.guaranteed] == [(0, "")] * 5
    assert check(result, "base").checked == 200
    assert (check(result, "mixed").checked, check(result, "mixed").failed) == (200, 200)
    assert check(result, "unreachable").failed == 0
    english, english_base, chinese, chinese_base = result.files
    assert english.tokens == english_base.tokens
    assert english.bytes_per_token == english.utf8_bytes / english.tokens
    assert chinese_base.byte_share > 0.8 and chinese.byte_share == 0  # noqa: PT018
    assert chinese.bytes_per_token > 3 * chinese_base.bytes_per_token
    assert chinese.utf8_bytes == sum(len(line.encode()) for line in CHINESE)
    assert chinese.characters == sum(map(len, CHINESE))
    shown = json.loads(json.dumps(result.to_json()))
    assert shown["broken"] is False
    assert shown["files"][2]["bytes_per_token"] == chinese.bytes_per_token
    assert "BROKEN" not in result.to_text()


def spoilt(folder, target, change):
    model = spm.ModelProto()
    model.CopyFrom(open_tokenizer(folder / "out").model)
    change(model)
    write_directory(target, model)
    return target


def test_score_zero_pieces_break_the_report(folder, tmp_path):
    """The published defect: new pieces above the base's merges."""

    base = open_tokenizer(folder / "base").pieces

    def zero(model):
        for piece in model.pieces[len(base) :]:
            piece.score = 0
        for pair in {"az", "zy", "ro", "ow", "ui", "ck"} - set(base):
            model.pieces.add(piece=pair, score=0, type=Piece.NORMAL)
        model.pieces.add(piece="a b", score=0, type=Piece.NORMAL)

    wrong = spoilt(folder, tmp_path / "wrong", zero)
    result = report.report_vocabulary(wrong, [folder / "en.txt", folder / "zh.txt"], against=folder / "base")
    assert result.broken
    assert check(result, "base").failed == 200
    assert check(result, "base").examples[0] == ENGLISH[0]
    assert check(result, "unreachable").examples[-1] == "a b"
    assert "BROKEN lines without an added character" in result.to_text()


def test_a_rescored_base_piece_breaks_the_report(folder, tmp_path):
    wrong = spoilt(folder, tmp_path / "wrong", lambda model: setattr(model.pieces[300], "score", -0.5))
    result = report.report_vocabulary(wrong, [folder / "en.txt"], against=folder / "base")
    assert (check(result, "kept").failed, result.broken) == (1, True)


def test_the_class_that_rebuilds_the_rules_breaks_the_report(folder, tmp_path):
    write_directory(tmp_path / "out", open_tokenizer(folder / "out").model)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    (tmp_path / "out" / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "LlamaTokenizer"})
    )
    (tmp_path / "a.txt").write_text("  two leading spaces\n plain\n")
    result = report.report_vocabulary(tmp_path / "out", [tmp_path / "a.txt"])
    assert check(result, "transformers").failed > 0
    assert result.broken
    assert check(result, "fast").failed == 0


def test_text_that_spells_special_tokens_is_text(folder, tmp_path):
    (tmp_path / "a.txt").write_text("a <s> b </s>\n<unk>\n")
    assert not report.report_vocabulary(folder / "out", [tmp_path / "a.txt"]).broken


def test_two_tokenizers_that_are_no_kin_are_only_compared(folder):
    result = report.report_vocabulary(folder / "add", [folder / "en.txt"], against=folder / "base")
    changed = next(check for check in result.checks if "from the other's" in check.name)
    assert (changed.failed, result.broken) == (200, False)


def test_a_directory_with_only_tokenizer_json(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / "out" / name).read_bytes())
    result = report.report_vocabulary(tmp_path, [folder / "zh.txt"], against=folder / "out")
    assert not result.broken
    assert check(result, "unreachable").skipped
    assert result.files[0].tokens == result.files[1].tokens


@pytest.mark.parametrize("names", [["tokenizer.model", "tokenizer.json"], ["tokenizer.json"]])
def test_a_folder_whose_name_is_not_utf_8_is_no_fault_of_its_tokenizer(folder, tmp_path, names):
    named = tmp_path / os.fsdecode("词表".encode("gbk"))
    named.mkdir()
    for name in [*names, "tokenizer_config.json"]:
        (named / name).write_bytes((folder / "out" / name).read_bytes())
    result = report.report_vocabulary(named, [folder / "zh.txt"])
    assert not result.broken
    assert check(result, "transformers").skipped
    assert (check(result, "round trip").checked, check(result, "round trip").failed) == (200, 0)


def test_a_model_file_alone(folder, tmp_path):
    (tmp_path / "x.model").write_bytes((folder / "out" / "tokenizer.model").read_bytes())
    result = report.report_vocabulary(tmp_path / "x.model", [folder / "zh.txt"], max_lines=7)
    assert "has no tokenizer.json" in check(result, "transformers").skipped
    assert result.files[0].lines == 7


@pytest.mark.parametrize(
    "rules", [{}, {"treat_whitespace_as_suffix": True}, {"split_by_whitespace": False}], ids=str
)
def test_pieces_of_a_tokenizer_that_strips_spaces_are_reached_inside_a_line(tmp_path, rules):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*ENGLISH, *CHINESE]),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        remove_extra_whitespaces=True,
        minloglevel=2,
        **rules,
    )
    model = spm.ModelProto()
    model.ParseFromString(written.getvalue())
    assert unreachable(model) == []
    model.pieces.add(piece="a▁▁b", score=-999, type=Piece.NORMAL)
    model.pieces.add(piece="▁▁", score=-999, type=Piece.NORMAL)
    assert unreachable(model) == ["a▁▁b", "▁▁"]


def test_what_is_left_out_is_told(folder, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a line"}\n{"content": "another"}\n{"content": "third"}\n')
    (tmp_path / "b.csv").write_text("text")
    result = report.report_vocabulary(folder / "out", [tmp_path])
    assert result.left_out == [
        "left out 1 file(s) of other kinds: b.csv",
        "left out 2 of 3 records: has no field 'text' (a.jsonl)",
    ]
    assert all(line in result.to_text().splitlines() for line in result.left_out)
    assert result.to_json()["left_out"] == result.left_out


def test_a_text_in_another_encoding(folder, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(CHINESE), encoding="gb18030")
    (figures,) = report.report_vocabulary(folder / "out", [tmp_path / "a.txt"], encoding="gb18030").files
    assert (figures.lines, figures.utf8_bytes) == (200, sum(len(line.encode()) for line in CHINESE))


def test_no_text_is_told(folder, tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(UserError, match="has no line of text"):
        report.report_vocabulary(folder / "out", [tmp_path / "a.txt"])
