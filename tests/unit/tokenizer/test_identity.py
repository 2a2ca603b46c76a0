"""One identity of a tokenizer: a fingerprint of whatever decides ids, and ids as its files give them."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest

from tests.helpers.byte_level import save, tokenizer_json
from tests.helpers.model_tiny import CHINESE, ENGLISH, sentencepiece_model
from tokenization.errors import UserError
from tokenization.prepare.prepare import prepare
from tokenization.shards.store import open_tokens
from tokenization.tokenizer import encoder, engines
from tokenization.tokenizer import fingerprint as fingerprints
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import fingerprint, open_tokenizer
from tokenization.tokenizer.hf_json import TokenPiece
from tokenization.vocabulary import report

MODEL = sentencepiece_model(*ENGLISH, *CHINESE)
PAD = len(MODEL.pieces)


def directory(folder, model=MODEL, **files):
    """A directory with `model`, and JSON files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    for name, held in files.items():
        (folder / f"{name}.json").write_text(json.dumps(held), encoding="utf-8")
    return folder


def changed(change):
    model = copy.deepcopy(MODEL)
    change(model)
    return model


def flip(message, field, value):
    return lambda model: setattr(getattr(model, message), field, value)


# ---- the fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.pieces[-1], "piece", "x"),
        lambda model: setattr(model.pieces[-1], "score", -99.0),
        lambda model: setattr(model.pieces[-1], "type", TokenPiece.USER_DEFINED),
        lambda model: model.pieces.add(piece="y", score=-99.0),
        flip("normalizer_spec", "add_dummy_prefix", False),
        flip("normalizer_spec", "remove_extra_whitespaces", True),
        flip("normalizer_spec", "precompiled_charsmap", b"map"),
        flip("trainer_spec", "byte_fallback", False),
        flip("trainer_spec", "eos_id", 1),
        flip("trainer_spec", "bos_id", -1),
    ],
)
def test_whatever_decides_ids_in_a_model_changes_the_fingerprint(tmp_path, change):
    one, other = directory(tmp_path / "one"), directory(tmp_path / "other", changed(change))
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<pad>": PAD}},
        {"added_tokens": {"<pad>": PAD}, "special_tokens_map": {"pad_token": "<pad>"}},
        {"added_tokens": {"<other>": PAD}},
        {"tokenizer_config": {"added_tokens_decoder": {str(PAD): {"content": "<pad>", "lstrip": True}}}},
        {"tokenizer_config": {"eos_token": "<s>"}},
        {"tokenizer_config": {"bos_token": None}},
    ],
)
def test_whatever_decides_ids_beside_a_model_changes_the_fingerprint(tmp_path, files):
    plain = directory(tmp_path / "plain")
    told = fingerprint(directory(tmp_path / "told", **files))
    assert told != fingerprint(plain)
    assert fingerprints.core(told) == fingerprints.core(fingerprint(plain))


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held["model"]["vocab"].update(x=999),
        lambda held: held["model"]["merges"].reverse(),
        lambda held: held.update(normalizer={"type": "NFC"}),
        lambda held: held["pre_tokenizer"].update(add_prefix_space=True),
        lambda held: held["added_tokens"][0].update(special=False),
    ],
)
def test_whatever_decides_ids_in_a_tokenizer_json_changes_the_fingerprint(tmp_path, change):
    held = tokenizer_json()
    one = fingerprint(save(tmp_path / "one", held))
    change(held)
    assert fingerprint(save(tmp_path / "other", held)) != one


def test_eos_of_a_tokenizer_json_is_part_of_its_fingerprint(tmp_path):
    held = tokenizer_json(special=("<|end|>", "<|turn|>"))
    one, other = (save(tmp_path / name, held, eos_token=name) for name in ("<|end|>", "<|turn|>"))
    assert fingerprint(one) != fingerprint(other)


def test_what_decides_no_id_leaves_the_fingerprint(tmp_path):
    write_directory(tmp_path / "one", MODEL)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    config = json.loads((tmp_path / "two" / "tokenizer_config.json").read_text())
    told = {**config, "chat_template": "x", "model_max_length": 5, "padding_side": "left"}
    (tmp_path / "two" / "tokenizer_config.json").write_text(json.dumps(told))
    directory(tmp_path / "three")
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "three", tmp_path / "three" / "tokenizer.model"]
    assert len({fingerprint(folder) for folder in folders}) == 1


def test_a_fingerprint_of_an_earlier_rewarm_is_its_first_half():
    # As the versions before wrote them, for these very tokenizers.
    model = sentencepiece_model("a")
    assert fingerprints.of_model(model) == fingerprints.core(
        fingerprints.join(fingerprints.of_model(model), [2])
    )
    assert fingerprints.same("core", "core.rest")
    assert fingerprints.same("core.rest", "core.rest")
    assert not fingerprints.same("core.rest", "core.other")
    assert not fingerprints.same("core", "other.rest")


def as_before(prefix):
    """Make the shard's side file one of an earlier rewarm."""
    side = prefix.with_name(f"{prefix.name}.json")
    told = json.loads(side.read_text())
    side.write_text(json.dumps({**told, "tokenizer": fingerprints.core(told["tokenizer"])}))


def test_shards_of_an_earlier_rewarm_stay_what_they_are(tmp_path):
    write_directory(tmp_path / "tok", MODEL)
    (tmp_path / "a.txt").write_text("ab 中国 abc\n" * 40)
    prepare([tmp_path / "a.txt"], tmp_path / "tok", tmp_path / "new", txt="lines", progress=False)
    for part in (1, 2):
        prepare([tmp_path / "a.txt"], tmp_path / "tok", tmp_path / "parts", txt="lines", part=(part, 2),
                progress=False)  # fmt: skip
    now, parts = open_tokens(tmp_path / "new"), open_tokens(tmp_path / "parts").fingerprint
    as_before(tmp_path / "new")
    as_before(tmp_path / "parts-00000-of-00002")
    before = open_tokens(tmp_path / "new")
    assert before.fingerprint == now.fingerprint, "a run must know its sources again"
    assert fingerprints.same(before.tokenizer, now.tokenizer)
    mixed = open_tokens(tmp_path / "parts")
    assert (mixed.fingerprint, mixed.tokenizer) == (parts, now.tokenizer)


def test_a_job_of_an_earlier_rewarm_goes_on(tmp_path, monkeypatch):
    write_directory(tmp_path / "tok", MODEL)
    (tmp_path / "a.txt").write_text("ab 中国 abc\n" * 40)
    asked = ([tmp_path / "a.txt"], tmp_path / "tok", tmp_path / "out")
    done = prepare(*asked, progress=False)
    counts = tmp_path / "out.prepared.json"
    from tokenization.prepare.job import Job

    told = json.loads(counts.read_text())
    earlier = []
    monkeypatch.setattr(Job, "identity", property(lambda job: earlier.append(job.earlier_identity) or "x"))
    with pytest.raises(UserError):
        prepare(*asked, progress=False)
    monkeypatch.undo()
    del told["lost"]
    counts.write_text(json.dumps({**told, "job": earlier[0]}))
    as_before(tmp_path / "out")
    again = prepare(*asked, progress=False)
    assert (again.finished_before, again.documents) == (1, done.documents)


# ---- tokens beyond tokenizer.model


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<pad>": PAD}, "special_tokens_map": {"pad_token": "<pad>"}},
        {"added_tokens": {"<pad>": PAD}, "tokenizer_config": {"pad_token": {"content": "<pad>"}}},
        {"tokenizer_config": {"pad_token": "<pad>",
                              "added_tokens_decoder": {str(PAD): {"content": "<pad>", "special": True}}}},
        {"tokenizer": {"added_tokens": [{"id": PAD, "content": "<pad>", "special": True}],
                       "model": {"vocab": {"<unk>": 0, "ab": 263, "<pad>": PAD}}},
         "tokenizer_config": {"pad_token": "<pad>"}},
    ],
)  # fmt: skip
def test_tokens_beside_a_model_have_ids(tmp_path, files):
    tokenizer = open_tokenizer(directory(tmp_path / "tok", **files))
    assert (tokenizer.size, tokenizer.pieces[PAD], tokenizer.pad_id) == (PAD + 1, "<pad>", PAD)
    assert not tokenizer.is_text(PAD)
    assert tokenizer.is_text(PAD - 1)
    # A single file stands for itself.
    assert open_tokenizer(tmp_path / "tok" / "tokenizer.model").size == PAD


def test_a_directory_says_which_token_ends_a_document(tmp_path):
    chat = {"tokenizer_config": {"eos_token": "<|im_end|>"}, "added_tokens": {"<|im_end|>": PAD}}
    folder = directory(tmp_path / "tok", **chat)
    assert open_tokenizer(folder).eos_id == PAD
    (tmp_path / "a.txt").write_text("ab\n中国")
    prepare([tmp_path / "a.txt"], folder, tmp_path / "out", txt="lines", progress=False)
    store = open_tokens(tmp_path / "out")
    assert store.read(store.tokens - 1, 1).tolist() == [PAD]
    assert (store.eos_id, store.vocab_size) == (PAD, PAD + 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<pad>": PAD + 1}}, r"'<pad>' the id \d+, which is not \d+; .*without a gap"),
        ({"added_tokens": {"<pad>": 5}}, "'<pad>' the id 5, which is the id of '<0x02>'"),
        (
            {"added_tokens": {"</s>": PAD}},
            r"added_tokens.json: gives '</s>' the id \d+, and another file .* 2",
        ),
        (
            {"tokenizer": {"model": {"vocab": {"ab": 5}}}},
            "has the piece 'ab' as 5, and tokenizer.model beside",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "has an added token without an id"),
    ],
)
def test_files_of_different_tokenizers_are_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        open_tokenizer(directory(tmp_path / "tok", **files))


def test_a_token_that_is_found_in_texts_is_found_where_sentencepiece_has_none(tmp_path):
    call = {"content": "<call>", "special": False, "normalized": False}
    files = {"tokenizer_config": {"added_tokens_decoder": {str(PAD): call}}}
    tokenizer = open_tokenizer(directory(tmp_path / "tok", **files))
    choice = encoder.choose_engine(tokenizer, ["ab<call>中国"])
    plain = engines.SentencePieceEngine(MODEL)
    rows = engines.split(choice.engine.encode(["ab<call>", "ab 中国"]))
    assert rows[0].tolist() == [*plain.encode(["ab"])[0].tolist(), PAD]
    assert rows[1].tolist() == plain.encode(["ab 中国"])[0].tolist()
    unigram = changed(lambda model: setattr(model.trainer_spec, "model_type", 1))
    with pytest.raises(
        UserError, match="does not have the added token '<call>', which is to be found in texts"
    ):
        encoder.reference(open_tokenizer(directory(tmp_path / "unigram", unigram, **files)))


# ---- every engine gives the ids of the file


@pytest.mark.parametrize("engine", ["gigatoken", "tokenizers"])
def test_added_tokens_after_special_ones_keep_their_ids(tmp_path, engine):
    held = tokenizer_json(special=("<|end|>", "<|turn|>"), found=("<call>", "</call>"))
    ids = {token["content"]: token["id"] for token in held["added_tokens"]}
    tokenizer = open_tokenizer(save(tmp_path / "tok", held))
    choice = encoder.choose_engine(tokenizer, ["nothing of it"], only=engine)
    row = choice.engine.encode(["hello <call>中</call><|end|>"])[0].tolist()
    assert [index for index in row if index >= min(ids.values())] == [ids["<call>"], ids["</call>"]]
    assert encoder.choose_engine(tokenizer, []).dropped == []


def test_an_engine_with_another_id_of_an_added_token_is_dropped(tmp_path, monkeypatch):
    tokenizer = open_tokenizer(save(tmp_path / "tok", tokenizer_json(found=("<call>",))))
    real = engines.GigatokenEngine.encode

    def renumbered(self, texts):
        ids, lengths = real(self, texts)
        return np.where(ids == tokenizer.size - 1, 7, ids), lengths

    monkeypatch.setattr(engines.GigatokenEngine, "encode", renumbered)
    choice = encoder.choose_engine(tokenizer, ["a text without it"])
    assert choice.engine.name == "tokenizers"
    assert "gigatoken makes [7] of '<call>'" in choice.dropped[0]


def test_a_file_whose_ids_no_library_gives_is_refused(tmp_path):
    held = tokenizer_json(found=("<call>",))
    held["added_tokens"][1]["id"] += 3  # a gap, which `tokenizers` closes
    tokenizer = open_tokenizer(save(tmp_path / "tok", held))
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be used: tokenizers gives '<call>' the id"):
        encoder.reference(tokenizer)


# ---- bytes without a piece


def test_bytes_without_a_piece_are_counted_and_told(tmp_path):
    tokenizer = save(tmp_path / "tok", tokenizer_json(without=(0x04, 0x11)))
    texts = ["hello\x04 hello\x04\x11", "hello 中", "\x04"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    done = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", progress=False)
    assert done.lost == {"byte 0x04": 3, "byte 0x11": 1, "documents": 2}
    assert "warning: 3 × byte 0x04 (in 2 documents): the tokenizer has no piece for it" in done.to_text()
    assert "encoded by tokenizers" in done.to_text()
    (why,) = [note for note in done.notes if "gigatoken" in note]
    assert why == (
        "gigatoken is not used: it needs a piece for every byte, and the vocabulary has none for 0x04"
    )
    assert open_tokens(tmp_path / "out").utf8_bytes == sum(len(text.encode()) for text in texts) - 4
    again = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", progress=False)
    assert again.lost == done.lost, "a part that was finished before tells it again"


def test_text_that_becomes_the_unknown_token_is_counted(tmp_path):
    model = copy.deepcopy(MODEL)
    del model.pieces[3:259]
    model.trainer_spec.byte_fallback = False
    folder = directory(tmp_path / "tok", model)
    (tmp_path / "a.txt").write_text("ab Ω ab Ω")
    done = prepare([tmp_path / "a.txt"], folder, tmp_path / "out", progress=False)
    assert done.lost == {"text that became the unknown token 0": 2}
    assert "warning: 2 × text that became the unknown token 0" in done.to_text()


def test_a_byte_level_report_counts_bytes_of_characters_that_are_not_pieces(tmp_path):
    tokenizer = save(tmp_path / "tok", tokenizer_json(without=(0x04,)))
    (tmp_path / "a.txt").write_text("hello 中国\n")  # 国: three bytes that no piece joins
    made = report.report_vocabulary(tokenizer, [tmp_path / "a.txt"])
    assert made.files[0].byte_tokens == 3
    text = made.to_text()
    assert "bytes that no piece stands for, so that they vanish from texts: 1 of 243" in text
    assert "'0x04'" in text
    assert "src/" not in text
