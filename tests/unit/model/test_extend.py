"""Embeddings grown offline: base weights to the bit, new rows by the rule, nothing else touched."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.helpers import scheduler_runs
from tests.helpers.model_tiny import (
    CHINESE,
    ENGLISH,
    INIT,
    build,
    from_base,
    recipe,
    sentencepiece_model,
    tokenizer,
    tokens,
)
from tokenization.errors import UserError
from tokenization.tokenizer.directory import write_directory
from tokenization.tokenizer.files import open_tokenizer
from tokenization.vocabulary.extend import extend_vocabulary
from trainer.cli.main import main
from trainer.model.architecture import EMBEDDINGS, resolve_config
from trainer.model.extend import bits_per_byte, compare_tokenizers, extend_model
from trainer.model.tokens import TOKENIZER
from trainer.plan.make import base_lineage
from trainer.storage import hub
from trainer.storage.run_directory import EXPORTED
from trainer.storage.safetensors import WeightsReader

OLD = 3 + 256 + len(ENGLISH)  # 267
NEW = OLD + len(CHINESE)  # 270
ROWS = 320  # the next multiple of 64


def base(tmp_path, kind="llama", rows=OLD, max_shard_size="20kB", **init):
    """A base checkpoint with its tokenizer."""
    causal = build(recipe(**{**INIT[kind], **init, "vocab_size": rows}), OLD)
    causal.hf.save_pretrained(tmp_path / "base", max_shard_size=max_shard_size)
    tokenizer(tmp_path / "base", *ENGLISH)
    tokenizer(tmp_path / "new", *ENGLISH, *CHINESE)
    return causal.hf


def weights(directory):
    with WeightsReader(directory) as reader:
        return dict(reader)


# ▁=259 a b c ab=263 ▁ab=264 中=265 国=266
SPLITS = [
    [265, 266],  # 中国
    [259, 262],  # " c": a space and c
    [3 + 0xE5, 3 + 0x9C, 3 + 0x8B],  # 國, in UTF-8
]


def test_new_pieces_are_split_as_the_base_splits_their_text_inside_a_line(tmp_path):
    base(tmp_path)
    extension = compare_tokenizers(tmp_path / "base", tmp_path / "new", OLD)
    assert extension.splits == SPLITS
    assert (extension.base_pieces, extension.pieces, extension.rows) == (OLD, NEW, ROWS)
    assert extension.mean_split == pytest.approx(7 / 3)


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("tied", ["false", "true"])
@pytest.mark.parametrize("rows", [OLD, OLD + 50])
def test_sub_piece_means_beside_base_rows_to_the_bit(kind, tied, rows, tmp_path):
    base(tmp_path, kind, rows, tie_word_embeddings=tied)
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    before, after = weights(tmp_path / "base"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    grown = EMBEDDINGS[kind][:1] if tied == "true" else EMBEDDINGS[kind]
    for name, value in before.items():
        if name not in grown:
            assert torch.equal(after[name], value), name
            continue
        assert torch.equal(after[name][:OLD], value[:OLD]), name
        assert after[name].shape == (ROWS, 32)
        for row, split in enumerate(SPLITS):
            torch.testing.assert_close(after[name][OLD + row], value[split].mean(dim=0), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(
            after[name][NEW:], value[:OLD].mean(dim=0).expand(ROWS - NEW, -1), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("kind", INIT)
def test_english_logits_change_in_the_tail_alone(kind, tmp_path):
    old = base(tmp_path, kind)
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    input_ids = tokens(2, 16, pieces=OLD)
    before, after = old(input_ids).logits, new(input_ids).logits
    assert after.shape[-1] == ROWS
    assert torch.equal(after[..., :OLD], before)
    assert (after[..., NEW:].amax(-1) <= before.amax(-1)).all(), "padding is never the most likely"


def test_mean_and_random_rows(tmp_path):
    base(tmp_path)
    before = weights(tmp_path / "base")
    for number, how in enumerate(("mean", "random", "random")):
        extend_model(tmp_path / "base", tmp_path / "new", tmp_path / f"out-{number}", how, seed=7)
    for name in EMBEDDINGS["llama"]:
        mean, random, again = (weights(tmp_path / f"out-{number}")[name] for number in range(3))
        expected = before[name].mean(dim=0).expand(3, -1)
        torch.testing.assert_close(mean[OLD:NEW], expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(random, again)
        assert random[OLD:NEW].std().item() == pytest.approx(before[name].std().item(), rel=0.3)
    inputs, outputs = (weights(tmp_path / "out-1")[name][OLD:NEW] for name in EMBEDDINGS["llama"])
    assert not torch.equal(inputs, outputs)
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "other", "random", seed=8)
    assert not torch.equal(weights(tmp_path / "other")["lm_head.weight"][OLD:NEW], outputs)


def test_the_lineage_of_an_export_goes_with_its_grown_weights(tmp_path):
    base(tmp_path)
    run = scheduler_runs.recipe(scheduler_runs.phase("one"))
    state = scheduler_runs.saved_after(run, 50)
    (tmp_path / "base" / EXPORTED).write_text(json.dumps(state.to_json()))
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    asked = from_base(tmp_path / "out")
    lineage = base_lineage(asked, resolve_config(asked, NEW))
    assert (lineage.lr, lineage.peak, lineage.seen) == (state.next_lr, 3e-4, state.tokens_seen())
    assert (lineage.new_rows, lineage.optimizer) == (ROWS - OLD, False)
    plain = from_base(tmp_path / "base")
    assert base_lineage(plain, resolve_config(plain, OLD)).new_rows == 0


def test_a_grown_model_trains_on_from_where_its_base_was(tmp_path):
    base(tmp_path)
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["base_vocab_size"]) == (ROWS, OLD)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (
        tmp_path / "new" / "tokenizer.model"
    ).read_bytes()
    assert (tmp_path / "out" / "generation_config.json").exists()
    causal = build(from_base(tmp_path / "out", "phases.0.train=new_rows"), NEW)
    assert causal.hf.config.base_vocab_size == OLD
    ids = tokens(2, 16, pieces=NEW)
    logits = causal.hf(ids).logits[..., :NEW]
    expected = functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")
    assert causal(ids, ids)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_low_precision_stays_as_it_is(tmp_path):
    hf = base(tmp_path)
    hf.bfloat16().save_pretrained(tmp_path / "base", max_shard_size="1GB")
    (tmp_path / "base" / "model.safetensors.index.json").unlink()
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    before, after = load_file(tmp_path / "base" / "model.safetensors"), weights(tmp_path / "out")
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    expected = before["lm_head.weight"][SPLITS[2]].float().mean(dim=0).bfloat16()
    assert torch.equal(after["lm_head.weight"][OLD + 2], expected)


def test_bits_per_byte_of_a_text(tmp_path):
    hf = base(tmp_path)
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    text = "ab c 中国" * 5
    # " ab c 中国ab c 中国…" after the dummy prefix; the base has ▁ab, ▁, c, 中, 国 and ab.
    ids = torch.tensor([[1, 264, 259, 262, 259, 265, 266, *[263, 259, 262, 259, 265, 266] * 4]])
    logits = hf(ids[:, :-1]).logits
    nats = functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:], reduction="sum").item()
    expected = nats / math.log(2) / len(text.encode())
    assert bits_per_byte(tmp_path / "base", text) == pytest.approx(expected, rel=1e-6)
    short = [nats_of(hf, ids[:, start : start + 8]) for start in range(0, ids.shape[1] - 1, 7)]
    assert bits_per_byte(tmp_path / "base", text, window=7) == pytest.approx(
        sum(short) / math.log(2) / len(text.encode()), rel=1e-6
    )
    # 20 tokens instead of 30, each about as surprising for a model that has learnt nothing.
    assert bits_per_byte(tmp_path / "out", text) < 0.75 * expected


def test_the_command_tells_the_losses_on_a_text(tmp_path, capsys):
    base(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "ab c 中国" * 5}) + "\n")
    assert command(tmp_path, "a.jsonl", "--text-field", "body") == 0
    before = bits_per_byte(tmp_path / "base", "ab c 中国" * 5)
    assert f"a.jsonl: {before:.4f} bits/byte before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a.jsonl",
            "has no text; left out 1 of 1 records: has no field 'text' (a.jsonl); is --text-field right?",
        ),
        ("gone.jsonl", "does not exist"),
        ("plain.txt", "base/tokenizer.json: is not a SentencePiece model"),
    ],
)
def test_a_text_that_cannot_be_read_is_told_before_anything_is_written(tmp_path, capsys, text, said):
    base(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "ab"}) + "\n")
    (tmp_path / "plain.txt").write_text("ab")
    if text == "plain.txt":
        write_directory(tmp_path / "base", sentencepiece_model(*ENGLISH))
        (tmp_path / "base" / "tokenizer.model").unlink()
    assert command(tmp_path, text) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_tells_what_it_leaves_out_of_a_text(tmp_path, capsys):
    base(tmp_path)
    lines = [{"text": "ab c"}, {"content": "lost"}, {"text": "中国"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b.txt").write_text("ab\n中国\n", encoding="gb18030")
    assert command(tmp_path, "a.jsonl", str(tmp_path / "b.txt"), "--encoding", "gb18030", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    expected = f"{tmp_path}/a.jsonl: left out 1 of 3 records: has no field 'text' (a.jsonl)"
    assert told["left_out"] == [expected]
    assert told["bits_per_byte"][f"{tmp_path}/a.jsonl"]["before"] == pytest.approx(
        bits_per_byte(tmp_path / "base", "ab c\n中国")
    )
    assert told["bits_per_byte"][f"{tmp_path}/b.txt"]["before"] == pytest.approx(
        bits_per_byte(tmp_path / "base", "ab\n中国")
    )


@pytest.mark.parametrize("size", [None, 0, "267"])
def test_a_config_that_leaves_the_size_to_a_guess_is_refused(tmp_path, size):
    base(tmp_path)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    del config["vocab_size"]
    if size is not None:
        config["vocab_size"] = size
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=rf"--base: .* its config.json has vocab_size: {size!r}, which is not a size"
    ):
        extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_base_of_the_losses_may_be_a_hub_id(tmp_path, capsys, monkeypatch):
    base(tmp_path)
    (tmp_path / "a.txt").write_text("ab c")
    fetched = []

    def fetch(model, files, field):
        fetched.append((model, field))
        return tmp_path / "base"

    monkeypatch.setattr(hub, "fetch_from_hub", fetch)
    assert command(tmp_path, "a.txt", base="org/name") == 0
    assert fetched == [("org/name", "--base")]
    assert "bits/byte before" in capsys.readouterr().out


def command(tmp_path, text, *more, base=None):
    folders = {
        "--base": base or tmp_path / "base",
        "--tokenizer": tmp_path / "new",
        "--out": tmp_path / "out",
    }
    words = [str(word) for pair in folders.items() for word in pair]
    return main(["model", "extend", *words, "--text", str(tmp_path / text), *more])


def nats_of(hf, ids):
    logits = hf(ids[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:], reduction="sum").item()


def refused(tmp_path, words, new="new", **changes):
    with pytest.raises(UserError, match=words):
        extend_model(tmp_path / "base", tmp_path / new, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_tokenizer_that_is_no_extension_is_refused(tmp_path):
    base(tmp_path)
    tokenizer(tmp_path / "other", "▁", "a", "c", *CHINESE)
    refused(
        tmp_path,
        r"does not extend the base's: its piece 261 is 'c' \(score -2\), not 'b' \(score -2\)",
        "other",
    )
    model = sentencepiece_model(*ENGLISH, *CHINESE)
    model.pieces[OLD - 1].score = -0.5
    (tmp_path / "other" / "tokenizer.model").write_bytes(model.SerializeToString())
    refused(tmp_path, r"its piece 266 is '国' \(score -0.5\), not '国' \(score -7\); make an", "other")
    tokenizer(tmp_path / "same", *ENGLISH)
    refused(tmp_path, "adds nothing to the base's 267 pieces; train with the base itself", "same")
    tokenizer(tmp_path / "less", *ENGLISH[:-1])
    refused(tmp_path, "adds nothing to the base's 267 pieces", "less")
    refused(tmp_path, "nowhere: does not exist", "nowhere")
    (tmp_path / "new" / "tokenizer.model").write_bytes(b"\xff no model")
    refused(tmp_path, r"tokenizer.model")


def test_a_base_known_by_tokenizer_json_alone_is_split_all_the_same(tmp_path):
    base(tmp_path)
    write_directory(tmp_path / "base", sentencepiece_model(*ENGLISH))
    (tmp_path / "base" / "tokenizer.model").unlink()
    assert compare_tokenizers(tmp_path / "base", tmp_path / "new", OLD).splits == SPLITS
    write_directory(tmp_path / "new", sentencepiece_model(*ENGLISH, *CHINESE))
    (tmp_path / "new" / "tokenizer.model").unlink()
    refused(
        tmp_path,
        r"tokenizer.json: is not a SentencePiece model, which new rows need; give",
    )


def test_a_base_that_cannot_be_grown_is_refused(tmp_path):
    base(tmp_path, max_shard_size="1GB")
    file, config = tmp_path / "base" / "model.safetensors", tmp_path / "base" / "config.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    refused(tmp_path, r"model.safetensors: cannot be read")
    file.unlink()
    refused(tmp_path, r"has neither model.safetensors nor")
    file.write_bytes(whole)
    written = json.loads(config.read_text())
    config.write_text(json.dumps({**written, "vocab_size": 200}))
    refused(tmp_path, "has 200 embedding rows for its tokenizer's 267 pieces")
    config.write_text(json.dumps({**written, "model_type": "mamba"}))
    refused(tmp_path, "'mamba' is not a supported model_type")
    (tmp_path / "base" / "tokenizer.model").unlink()
    config.write_text(json.dumps(written))
    refused(tmp_path, r"base: has neither tokenizer.model nor tokenizer.json")


def test_nothing_is_overwritten(tmp_path):
    base(tmp_path)
    with pytest.raises(UserError, match="exists and is not empty"):
        extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "base")
    assert load_file(next((tmp_path / "base").glob("*.safetensors")))


def test_the_hand_made_tokenizer_is_one():
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(*ENGLISH, *CHINESE).SerializeToString()
    )
    assert processor.encode("ab c中国", out_type=str) == ["▁ab", "▁c", "中国"]


# ---- special tokens, and the tokenizer that the rows are of


def padded_base(tmp_path, pad, **files):
    """A base whose config names a pad id, one row beyond the pieces of its model."""
    old = base(tmp_path, rows=OLD + 1)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    generation = {"pad_token_id": pad, "eos_token_id": 2, "temperature": 0.5}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(generation))
    for name, held in files.items():
        (tmp_path / "base" / f"{name}.json").write_text(json.dumps(held))
    return old


def test_a_pad_id_beyond_the_pieces_does_not_become_a_new_piece(tmp_path, capsys):
    padded_base(tmp_path, OLD)
    arguments = ["--base", str(tmp_path / "base"), "--tokenizer", str(tmp_path / "new")]
    assert main(["model", "extend", *arguments, "--out", str(tmp_path / "out")]) == 0
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["pad_token_id"] is None
    said = capsys.readouterr().out
    assert f"config.json: pad_token_id {OLD} is None now" in said
    assert f"generation_config.json: pad_token_id {OLD} is None now" in said
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5


def test_an_extension_that_takes_the_id_of_an_added_token_is_refused(tmp_path):
    padded_base(tmp_path, OLD, added_tokens={"<pad>": OLD}, special_tokens_map={"pad_token": "<pad>"})
    with pytest.raises(UserError, match=rf"its piece {OLD} is '中国' \(score -8\), not '<pad>'"):
        extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")


def test_a_token_that_is_found_in_texts_is_named_as_well(tmp_path):
    padded_base(tmp_path, OLD, added_tokens={"<call>": OLD})
    with pytest.raises(UserError, match=rf"its piece {OLD} is '中国' \(score -8\), not '<call>'"):
        extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")


def test_an_added_token_of_the_base_keeps_its_row(tmp_path):
    padded_base(tmp_path, OLD, added_tokens={"<pad>": OLD}, special_tokens_map={"pad_token": "<pad>"})
    made = extend_vocabulary(tmp_path / "base", tmp_path / "new", tmp_path / "grown")
    extension = extend_model(tmp_path / "base", tmp_path / "grown", tmp_path / "out")
    assert (extension.base_pieces, extension.pieces) == (OLD + 1, OLD + 1 + made.added)
    before, after = weights(tmp_path / "base"), weights(tmp_path / "out")
    for name in EMBEDDINGS["llama"]:
        assert torch.equal(after[name][: OLD + 1], before[name]), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == OLD


def test_the_model_tells_of_which_tokenizer_its_rows_are(tmp_path):
    base(tmp_path)
    extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        told[TOKENIZER]
        == open_tokenizer(tmp_path / "new").fingerprint
        == open_tokenizer(tmp_path / "out").fingerprint
    )
    # Another one laid beside its rows is not taken for theirs.
    tokenizer(tmp_path / "out", *ENGLISH, *reversed(CHINESE))
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has rows of the tokenizer .*, and the one beside them is"):
        extend_model(
            tmp_path / "out", tokenizer(tmp_path / "more", *ENGLISH, *CHINESE, "a国"), tmp_path / "again"
        )


def test_pad_that_is_eos_is_told(tmp_path):
    padded_base(tmp_path, 2)
    extension = extend_model(tmp_path / "base", tmp_path / "new", tmp_path / "out")
    assert any("pad_token_id 2 is EOS as well" in line for line in extension.lines)
