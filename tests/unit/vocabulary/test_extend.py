"""Vocabulary extension: small vocabularies merged by hand, and the proofs of what is guaranteed."""

from __future__ import annotations

import json
import re

import pytest
from sentencepiece import sentencepiece_model_pb2 as spm

from tests.helpers.vocabularies import ADD, BASE, Piece, encode, model_of, saved
from tokenization.errors import InfrastructureError, UserError, UserErrors
from tokenization.tokenizer import directory as directories
from tokenization.tokenizer import encoder, files, hard_lines
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.proof import TransformersEngine, difference
from tokenization.vocabulary import extend
from tokenization.vocabulary.extend import append, choose_pieces, unreachable


def test_a_small_vocabulary_merged_by_hand(tmp_path):
    made = extend.extend_vocabulary(
        saved(tmp_path / "base", BASE), saved(tmp_path / "add", ADD), tmp_path / "out"
    )
    model = open_tokenizer(tmp_path / "out").model
    size = len(BASE.pieces)
    assert list(model.pieces[:size]) == list(BASE.pieces)
    # below -12, the base's lowest but for the runs of spaces, and one apart
    assert [(piece.piece, piece.score) for piece in model.pieces[size:]] == [
        ("人民", -13), ("▁人民", -14), ("。”", -15), ("国人民", -16), ("民国", -17),
        ("人", -18), ("民", -19), ("龙", -20), ("凤", -21), ("呈", -22), ("祥", -23), ("鬼", -24),
    ]  # fmt: skip
    assert made.left_out == {
        "has ASCII letters, digits or punctuation": 2,
        "already in the base": 1,
        "has only characters that English may use": 1,
        "has characters of a script that is not allowed (hiragana)": 1,
        "a character of it is not a piece": 1,
        "no sequence of merges reaches it": 1,
    }
    assert (made.base_pieces, made.added) == (size, 12)
    assert made.fingerprint == files.open_tokenizer(tmp_path / "out").fingerprint
    listed = json.loads((tmp_path / "out" / "extension.json").read_text())
    assert listed["left_out"]["no sequence of merges reaches it"] == ["龙凤呈祥"]
    assert listed["left_out"]["a character of it is not a piece"] == ["鬼佬"]
    assert listed["pieces"][:2] == ["人民", "▁人民"]
    assert listed["base_fingerprint"] == files.open_tokenizer(tmp_path / "base").fingerprint
    # 人民 merges before ▁人民; the base's 中国 still merges before everything new
    assert encode(model, "人民") == ["▁人民"]
    assert encode(model, "a中国人民") == ["▁", "a", "中国", "人民"]
    assert encode(model, "the the") == encode(BASE, "the the") == ["▁the", "▁the"]


def test_score_zero_pieces_would_have_changed_the_segmentation():
    """What published merges do: 国人 at score 0 would break the base's 中国."""
    wrong = spm.ModelProto()
    wrong.CopyFrom(BASE)
    for piece in ("国人", "人"):
        wrong.pieces.add(piece=piece, score=0, type=Piece.NORMAL)
    right = append(BASE, ["国人", "人"])
    assert encode(wrong, "中国人") == ["▁", "中", "国人"]
    assert encode(right, "中国人") == ["▁", "中国", "人"]


def test_max_pieces_takes_characters_first_and_stays_reachable():
    chosen, left_out = choose_pieces(BASE, [piece.piece for piece in ADD.pieces[259:]], ["han"], 9)
    assert chosen == ["人民", "▁人民", "人", "民", "龙", "凤", "呈", "祥", "鬼"]
    assert left_out["beyond --max-pieces 9"] == ["。”", "国人民", "民国"]
    # a part of a kept piece that is cut away takes the piece with it
    offered = ["甲乙丙", "乙丙", "甲", "乙", "丙"]
    chosen, left_out = choose_pieces(BASE, offered, ["han"], 4)
    assert chosen == ["甲", "乙", "丙"]
    assert left_out["no sequence of merges reaches it"] == ["甲乙丙"]


def test_scripts_can_be_allowed(tmp_path):
    chosen, _ = choose_pieces(BASE, ["に", "ほ", "にほ", "é", "café", "Ж"], ["hiragana", "latin"], None)
    assert chosen == ["に", "ほ", "にほ", "é"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_scripts": ["hann"]}, "--allow-scripts: 'hann' is not a known script; did you mean 'han'"),
        ({"allow_scripts": []}, "has no script"),
        ({"max_pieces": 0}, "--max-pieces: 0 is not at least 1"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(UserErrors, match=message):
        extend.extend_vocabulary(
            saved(tmp_path / "b", BASE), saved(tmp_path / "a", ADD), tmp_path / "out", **options
        )
    assert not (tmp_path / "out").exists()


def test_base_and_new_pieces_in_each_other_s_place_write_nothing(tmp_path):
    base, add = saved(tmp_path / "b", BASE), saved(tmp_path / "a", ADD)
    extended = extend.extend_vocabulary(base, add, tmp_path / "extended").out
    with pytest.raises(UserError, match=r"adds no piece to .*already in the base.*--allow-scripts"):
        extend.extend_vocabulary(extended, add, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_parent_is_not_overwritten(tmp_path):
    base = saved(tmp_path / "b", BASE)
    with pytest.raises(UserErrors, match="is one of the tokenizers that are read"):
        extend.extend_vocabulary(base, saved(tmp_path / "a", ADD), base)


def test_a_unigram_model_is_put_in_an_order_of_merges(tmp_path):
    unigram = model_of(
        ("人民共和国", -3.0), ("共和国", -5.0), ("人民", -4.0), ("和国", -9.0), ("共", -6.0), ("和", -6.5),
        ("人", -6.6), ("民", -6.7), kind=spm.TrainerSpec.UNIGRAM,
    )  # fmt: skip
    made = extend.extend_vocabulary(
        saved(tmp_path / "b", BASE), saved(tmp_path / "a", unigram), tmp_path / "out"
    )
    model = open_tokenizer(tmp_path / "out").model
    # a word never stands before the parts of its best split: 人民 = 人+民 (-6.7), 和国 (-9), 共和国 (-9), …
    assert [piece.piece for piece in model.pieces[len(BASE.pieces) :]] == [
        "共", "和", "人", "民", "人民", "和国", "共和国", "人民共和国",
    ]  # fmt: skip
    assert encode(model, "中人民共和国") == ["▁", "中", "人民共和国"]
    assert any("Unigram" in note for note in made.notes)


def test_pieces_of_one_score_are_refused(tmp_path):
    """Score 0 for all, as Chinese-LLaMA has it: no list of merges can say 'the leftmost'."""
    tied = model_of(("乙丙", 0), ("甲乙", 0), ("甲", -1), ("乙", -2), ("丙", -3), ("▁", -4))
    assert encode(tied, "甲乙丙") == ["▁", "甲乙", "丙"]
    assert encoder.disagreements(tied, ["乙丙", "甲乙丙"]) == ["甲乙丙"]
    with pytest.raises(UserError, match="gives '乙丙' and '甲乙' one score"):
        extend.extend_vocabulary(saved(tmp_path / "b", tied), saved(tmp_path / "a", ADD), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.trainer_spec, "model_type", spm.TrainerSpec.UNIGRAM), "is not a BPE model"),
        (lambda m: setattr(m.trainer_spec, "byte_fallback", False), "has no byte fallback"),
        (lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", True), "changes text"),
        (lambda m: setattr(m.pieces[262], "type", Piece.USER_DEFINED), "user-defined"),
        (lambda m: setattr(m.pieces[262], "score", -(2.0**24)), "float32"),
    ],
)
def test_bases_that_cannot_be_extended_exactly_are_refused(tmp_path, change, message):
    base = spm.ModelProto()
    base.CopyFrom(BASE)
    change(base)
    with pytest.raises(UserError, match=message):
        extend.extend_vocabulary(saved(tmp_path / "b", base), saved(tmp_path / "a", ADD), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": len(BASE.pieces), "content": "<pad>"}]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(len(BASE.pieces)): {"content": "<pad>"}}}),
        ("added_tokens.json", {"<pad>": len(BASE.pieces)}),
    ],
)
def test_added_tokens_beside_the_model_are_not_overwritten(tmp_path, name, change):
    base = tmp_path / "b"
    write_directory(base, BASE)
    held = json.loads((base / name).read_text()) if (base / name).exists() else {}
    (base / "tokenizer.json").unlink()  # which a slow tokenizer has not
    (base / name).write_text(json.dumps({**held, **change}))
    with pytest.raises(UserError, match=rf"{name}: has <pad>, which tokenizer[.]model does not have"):
        extend.extend_vocabulary(base, saved(tmp_path / "a", ADD), tmp_path / "out")
    extend.extend_vocabulary(base / "tokenizer.model", tmp_path / "a", tmp_path / "out")


def test_a_base_with_only_tokenizer_json_is_rebuilt(tmp_path):
    write_directory(tmp_path / "b", BASE)
    add = saved(tmp_path / "a", ADD)
    extend.extend_vocabulary(tmp_path / "b", add, tmp_path / "whole")
    (tmp_path / "b" / "tokenizer.model").unlink()
    made = extend.extend_vocabulary(tmp_path / "b", add, tmp_path / "rebuilt")
    (note,) = [note for note in made.notes if "no tokenizer.model" in note]
    assert "its ids are the same on every hard line, its scores are new" in note
    whole, rebuilt = (open_tokenizer(tmp_path / name).model for name in ("whole", "rebuilt"))
    assert [(p.piece, p.type) for p in rebuilt.pieces] == [(p.piece, p.type) for p in whole.pieces]
    for line in ["the 中国", "  the", "t he the—the 中国人民", " " * 9 + "the", *hard_lines.HARD_LINES]:
        assert encode(rebuilt, line) == encode(whole, line)


def test_a_rebuilt_base_that_takes_runs_of_spaces_otherwise_is_told_so(tmp_path):
    """As what transformers makes of LLaMA's tokenizer.model: the runs stand in the order of their ids."""
    base = spm.ModelProto()
    base.CopyFrom(BASE)
    base.pieces.add(piece="▁▁▁", score=-1e9, type=Piece.NORMAL)
    write_directory(tmp_path / "b", base)
    (tmp_path / "b" / "tokenizer.model").unlink()
    file = tmp_path / "b" / "tokenizer.json"
    held = json.loads(file.read_text())
    merges = held["model"]["merges"]
    spaces = sorted(
        (merge for merge in merges if set("".join(merge)) == {"▁"}), key=lambda m: len("".join(m))
    )
    held["model"]["merges"] = [merge for merge in merges if merge not in spaces] + spaces
    file.write_text(json.dumps(held))
    made = extend.extend_vocabulary(tmp_path / "b", saved(tmp_path / "a", ADD), tmp_path / "rebuilt")
    (note,) = [note for note in made.notes if "no tokenizer.model" in note]
    assert re.search(r"the same but on \d+ hard lines, such as '.*  .*',", note)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["model"]["merges"].pop(), "does not merge every split of its pieces"),
        (lambda held: held["model"].update(byte_fallback=False), "is not a BPE with byte fallback"),
        (
            lambda held: held.update(pre_tokenizer={"type": "ByteLevel"}),
            "byte-level BPE, as those of LLaMA 3",
        ),
        (lambda held: held.update(normalizer={"type": "NFC"}), "does not prepare text by"),
        (lambda held: held["added_tokens"].append({"id": 999, "content": "<pad>"}), "outside its vocabulary"),
    ],
)
def test_a_tokenizer_json_that_no_model_equals_is_refused(tmp_path, change, message):
    write_directory(tmp_path / "b", BASE)
    (tmp_path / "b" / "tokenizer.model").unlink()
    held = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    change(held)
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=message):
        extend.extend_vocabulary(tmp_path / "b", saved(tmp_path / "a", ADD), tmp_path / "out")


@pytest.mark.parametrize(
    ("merges", "expected"),
    [
        (["ab", "abc"], []),
        (["abc"], ["abc"]),  # neither ab nor bc is a piece
        (["bc", "ab", "abc"], []),  # a + bc, though ab + c never comes about
        (["bc", "ab", "cd", "abcd"], ["abcd"]),  # bc goes first, and neither abc nor bcd is a piece
        (["abcd", "cd", "ab"], []),  # the parts need not rank first
    ],
)
def test_unreachable_pieces_are_found(merges, expected):
    pieces = [*merges, "a", "b", "c", "d", "▁"]
    assert unreachable(model_of(*((piece, -float(rank)) for rank, piece in enumerate(pieces)))) == expected


# ---- what the base's directory says beside its model


def chat_base(folder, **config):
    """A base with `<pad>` and `<|im_end|>` beyond its model, EOS the latter, and a chat template."""
    write_directory(folder, BASE)
    (folder / "tokenizer.json").unlink()
    first = len(BASE.pieces)
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": first, "<|im_end|>": first + 1}))
    told = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": "<|im_end|>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
    }
    told |= {
        "chat_template": "{{ m }}",
        "model_max_length": 99,
        "padding_side": "left",
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, **config}))
    (folder / "special_tokens_map.json").unlink()
    return folder


def test_added_tokens_of_the_base_keep_their_ids(tmp_path):
    base = open_tokenizer(chat_base(tmp_path / "b"))
    made = extend.extend_vocabulary(tmp_path / "b", saved(tmp_path / "a", ADD), tmp_path / "out")
    grown = open_tokenizer(tmp_path / "out")
    assert grown.pieces[: base.size] == base.pieces
    assert made.base_pieces == base.size
    assert (grown.eos_id, grown.pad_id, grown.bos_id) == (base.eos_id, base.pad_id, 1)
    assert grown.fingerprint == made.fingerprint
    # Text that spells one is text, as it was.
    lines = ["a<pad>中国<|im_end|>", "the"]
    assert encode(grown.model, lines[0]) == encode(BASE, lines[0])
    loaded = TransformersEngine(tmp_path / "out")
    assert difference(tmp_path / "out", grown) is None
    assert (loaded.tokenizer.eos_token, loaded.tokenizer.pad_token) == ("<|im_end|>", "<pad>")


def test_the_base_hands_down_its_chat_template_and_settings(tmp_path):
    chat_base(tmp_path / "b", mask_token="<mask>", auto_map={"x": "y"})
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ messages }}")
    made = extend.extend_vocabulary(tmp_path / "b", saved(tmp_path / "a", ADD), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    wanted = {
        "chat_template": "{{ m }}",
        "model_max_length": 99,
        "padding_side": "left",
        "pad_token": "<pad>",
    }
    assert {name: told.get(name) for name in wanted} == wanted
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    text = made.to_text()
    assert "tokenizer_config.json: mask_token '<mask>' is left out: not a piece" in text
    assert "tokenizer_config.json: auto_map is left out" in text


# ---- nothing that exists is overwritten


def test_what_is_there_is_not_overwritten_unless_that_is_asked_for(tmp_path):
    first, second = saved(tmp_path / "a", ADD), saved(tmp_path / "b", model_of(("中", 0), ("人", -1)))
    base = tmp_path / "base"
    write_directory(base, BASE)
    extend.extend_vocabulary(base, first, tmp_path / "out")
    before = open_tokenizer(tmp_path / "out").fingerprint
    with pytest.raises(UserError, match=r"--out: '.*out' exists and is not empty; give a new directory, or"):
        extend.extend_vocabulary(base, second, tmp_path / "out")
    assert open_tokenizer(tmp_path / "out").fingerprint == before
    extend.extend_vocabulary(base, second, tmp_path / "out", overwrite=True)
    assert open_tokenizer(tmp_path / "out").fingerprint != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base", "out"]


@pytest.mark.parametrize("name", ["notes.txt", "runs", "data.jsonl"])
def test_overwriting_never_takes_away_what_is_not_a_tokenizer(tmp_path, name):
    base, add = tmp_path / "base", saved(tmp_path / "a", ADD)
    write_directory(base, BASE)
    extend.extend_vocabulary(base, add, tmp_path / "out")
    (tmp_path / "out" / name).mkdir() if name == "runs" else (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=f"has {name}, which is not of a tokenizer or a model"):
        extend.extend_vocabulary(base, add, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / name).exists()


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    base, add = tmp_path / "base", saved(tmp_path / "a", ADD)
    write_directory(base, BASE)
    extend.extend_vocabulary(base, add, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directories, "write_atomically", full)
    with pytest.raises(InfrastructureError, match="No space left"):
        extend.extend_vocabulary(base, add, tmp_path / "out", overwrite=True, max_pieces=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "out"]
