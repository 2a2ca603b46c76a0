"""A model's rows and its tokenizer: compared, and written so that others get the ids of the training."""

from __future__ import annotations

import copy
import json

import pytest
import transformers

from tests.helpers.byte_level import save, tokenizer_json
from tests.helpers.model_tiny import CHINESE, ENGLISH, sentencepiece_model
from tokenization.errors import UserError
from tokenization.tokenizer import encoder, engines
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.proof import TransformersEngine, difference
from trainer.model.tokenizer import write_tokenizer
from trainer.model.tokens import TOKENIZER, compare, fingerprint_of, padding, with_special

MODEL = sentencepiece_model(*ENGLISH, *CHINESE)
PAD = len(MODEL.pieces)
LINES = ["ab  中国 國\n", "  abc", "<s>ab</s><pad>", "x" * 20]


def raw(folder, model=MODEL, **files):
    """A directory with nothing but a `tokenizer.model` and the JSON files named."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    for name, held in files.items():
        (folder / f"{name}.json").write_text(json.dumps(held), encoding="utf-8")
    return folder


def written(tmp_path, tokenizer, model_type="llama", base=None):
    """The model directory that a tokenizer was written to, and what was told."""
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"model_type": model_type}))
    return out, write_tokenizer(tokenizer, out, base)


# ---- what is written gives the ids of the training


ADDED = {
    "plain": {},
    "pad": {"added_tokens": {"<pad>": PAD}, "special_tokens_map": {"pad_token": "<pad>"}},
    "chat": {
        "added_tokens": {"<|im_end|>": PAD, "<|im_start|>": PAD + 1},
        "tokenizer_config": {
            "tokenizer_class": "LlamaTokenizer",
            "eos_token": "<|im_end|>",
            "additional_special_tokens": ["<|im_start|>"],
            "chat_template": "{{ messages }}",
            "model_max_length": 77,
            "padding_side": "left",
        },
    },
    "found": {
        "tokenizer_config": {"added_tokens_decoder": {str(PAD): {"content": "<call>", "normalized": False}}}
    },
}


@pytest.mark.parametrize("kind", ADDED)
def test_a_folder_with_only_a_model_is_written_as_one_that_gives_its_ids(tmp_path, kind):
    tokenizer = open_tokenizer(raw(tmp_path / "tok", **ADDED[kind]))
    out, told = written(tmp_path, tokenizer)
    assert told.loader == "AutoTokenizer"
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert len(loaded) == tokenizer.size
    assert (loaded.eos_token_id, loaded.bos_token_id) == (tokenizer.eos_id, 1)
    assert loaded("ab").input_ids[0] == 1, "a text begins with BOS, as LLaMA's do"
    lines = [*LINES, "ab<call>中国"]
    mine = engines.split(encoder.reference(tokenizer).encode(lines))
    theirs = engines.split(TransformersEngine(out).encode(lines))
    assert [row.tolist() for row in mine] == [row.tolist() for row in theirs]
    assert open_tokenizer(out).fingerprint == tokenizer.fingerprint
    assert (out / "tokenizer.model").read_bytes() == (tmp_path / "tok" / "tokenizer.model").read_bytes()
    if kind == "chat":
        assert (loaded.model_max_length, loaded.padding_side) == (77, "left")
        assert loaded.chat_template == "{{ messages }}"


def test_a_single_model_file_is_written_with_what_its_base_hands_down(tmp_path):
    (tmp_path / "base").mkdir()
    write_directory(tmp_path / "base", MODEL)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ x }}")
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    told = {**config, "padding_side": "left", "pad_token": "<none>"}
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(told))
    tokenizer = open_tokenizer(raw(tmp_path / "tok") / "tokenizer.model")
    out, made = written(tmp_path, tokenizer, base=open_tokenizer(tmp_path / "base"))
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert (loaded.padding_side, loaded.chat_template) == ("left", "{{ x }}")
    assert difference(out, tokenizer) is None
    assert any("pad_token '<none>' is left out: not a piece" in line for line in made.lines)


def test_a_path_to_a_tokenizer_json_is_written_under_that_name(tmp_path):
    folder = save(tmp_path / "tok", tokenizer_json(found=("<call>",)))
    tokenizer = open_tokenizer(folder / "tokenizer.json")
    out, made = written(tmp_path, tokenizer)
    assert not (out / "tokenizer.model").exists()
    assert difference(out, tokenizer, made.loader) is None
    assert open_tokenizer(out).fingerprint == tokenizer.fingerprint


def test_files_that_transformers_reads_rightly_are_copied_byte_for_byte(tmp_path):
    write_directory(tmp_path / "tok", MODEL)
    out, made = written(tmp_path, open_tokenizer(tmp_path / "tok"))
    for file in (tmp_path / "tok").iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert made.lines == []


def test_a_class_that_changes_ids_is_changed(tmp_path):
    # Qwen2's class normalizes to NFC, which this tokenizer.json does not.
    folder = save(
        tmp_path / "tok", tokenizer_json(), tokenizer_class="Qwen2Tokenizer", chat_template="{{ y }}"
    )
    tokenizer = open_tokenizer(folder)
    out, made = written(tmp_path, tokenizer)
    assert made.loader == "AutoTokenizer"
    assert "tokenizer_class Qwen2Tokenizer is PreTrainedTokenizerFast in the copy" in made.lines[0]
    assert difference(out, tokenizer) is None
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == "{{ y }}"


def test_where_auto_takes_a_types_own_rules_another_class_is_named(tmp_path):
    folder = save(tmp_path / "tok", tokenizer_json())
    out, made = written(tmp_path, open_tokenizer(folder), model_type="qwen2")
    assert made.loader == "PreTrainedTokenizerFast"
    assert "is to be loaded with PreTrainedTokenizerFast" in made.lines[-1]
    assert difference(out, open_tokenizer(folder), made.loader) is None


def test_what_no_class_reads_rightly_is_refused(tmp_path):
    model = copy.deepcopy(MODEL)
    model.trainer_spec.model_type = 1  # Unigram, by scores that are ranks
    tokenizer = open_tokenizer(raw(tmp_path / "tok", model))
    with pytest.raises(
        UserError, match="cannot be written so that transformers gives the ids of the training"
    ):
        written(tmp_path, tokenizer)


# ---- base and tokenizer


def base(folder, *pieces, **config):
    """A model directory (without weights) whose rows are of a tokenizer with those pieces."""
    write_directory(folder, sentencepiece_model(*pieces))
    return str(folder), config


def test_a_base_of_the_same_pieces_is_good(tmp_path):
    path, config = base(tmp_path / "base", *ENGLISH, *CHINESE)
    tokenizer = open_tokenizer(raw(tmp_path / "tok"))
    assert compare(path, config, tokenizer) == []
    assert compare(path, {TOKENIZER: tokenizer.fingerprint}, tokenizer) == []
    assert compare(path, {TOKENIZER: tokenizer.fingerprint.partition(".")[0]}, tokenizer) == []


def test_a_base_grown_by_another_vocabulary_of_the_same_size_is_refused(tmp_path):
    path, config = base(tmp_path / "base", *ENGLISH, *reversed(CHINESE))
    tokenizer = open_tokenizer(raw(tmp_path / "tok"))
    where = len(sentencepiece_model(*ENGLISH).pieces)
    with pytest.raises(
        UserError, match=rf"model.base: '.*base' has a row of '國' for the id {where}, which is"
    ):
        compare(path, config, tokenizer)
    recorded = {TOKENIZER: open_tokenizer(path).fingerprint}
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"has rows of the tokenizer .*, and model.tokenizer .* is"):
        compare(str(tmp_path / "bare"), recorded, tokenizer)


def test_one_may_go_on_where_the_other_ends(tmp_path):
    shorter, config = base(tmp_path / "base", *ENGLISH)
    tokenizer = open_tokenizer(raw(tmp_path / "tok"))
    (line,) = compare(shorter, config, tokenizer)
    assert "3 tokens of model.tokenizer" in line
    assert "begin on the base's padding rows" in line
    pad = raw(tmp_path / "pad", **ADDED["pad"])
    (line,) = compare(str(pad), {}, tokenizer)
    assert "has 1 more tokens (<pad>) than" in line


def test_a_base_without_a_tokenizer_is_told(tmp_path):
    (tmp_path / "bare").mkdir()
    (line,) = compare(str(tmp_path / "bare"), {}, open_tokenizer(raw(tmp_path / "tok")))
    assert "no tokenizer lies beside it" in line
    assert fingerprint_of(tmp_path / "bare", {}) is None


# ---- special tokens in config.json


def test_a_pad_id_that_is_a_piece_of_text_is_refused(tmp_path):
    tokenizer = open_tokenizer(raw(tmp_path / "tok"))
    with pytest.raises(UserError, match=r"pad_token_id 259 in config.json, which is '▁', a piece of text"):
        padding({"pad_token_id": 259}, tokenizer, value="base")
    assert padding({"pad_token_id": 0}, tokenizer) == []
    assert padding({"pad_token_id": None}, tokenizer) == []
    (line,) = padding({"pad_token_id": 2}, tokenizer)
    assert "pad_token_id 2 is EOS as well" in line


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"eos_token_id": 2, "bos_token_id": 1}, {}),
        ({}, {"eos_token_id": 2}),
        ({"eos_token_id": 259, "bos_token_id": 1}, {"eos_token_id": 2}),  # a piece of text
        ({"eos_token_id": [2, 0]}, {}),  # more than one may end a text
        ({"eos_token_id": [0, 9999]}, {"eos_token_id": [2, 0]}),
        ({"eos_token_id": [2, 259]}, {}),  # generation may stop at a piece of text as well
        ({"eos_token_id": [2, 260]}, {"eos_token_id": [2]}),  # appended: the base did not mean this piece
        ({"eos_token_id": [259]}, {"eos_token_id": 2}),
        ({"eos_token_id": 2, "bos_token_id": 260}, {"bos_token_id": 1}),
        ({"eos_token_id": 2, "pad_token_id": 32000}, {"pad_token_id": None}),  # beyond the rows
        ({"eos_token_id": 2, "pad_token_id": 260}, {"pad_token_id": None}),
        ({"eos_token_id": 2, "pad_token_id": -1}, {"pad_token_id": None}),  # LLaMA 1's
        ({"eos_token_id": 2, "pad_token_id": 2}, {}),
    ],
)
def test_special_ids_are_those_of_the_tokenizer(tmp_path, config, wanted):
    tokenizer = open_tokenizer(raw(tmp_path / "tok"))
    told, lines = with_special(config, tokenizer, "config.json", base_rows=260)
    assert told == {**config, **wanted}
    assert len(lines) == len(wanted)
    assert all(line.startswith("config.json: ") for line in lines)
