"""The first guide's own commands, with real text and 32,000 real pieces, to an exported model."""

import contextlib
import io
import json
import shlex
import subprocess

import pytest
import torch

from launch.quickstart import texts
from tests.helpers import runs
from tests.helpers.pages import lines_to_type
from tokenization.errors import InfrastructureError
from trainer.checkpoint import rank_files
from trainer.checkpoint.history import find_checkpoint
from trainer.cli.main import main
from trainer.metrics.jsonl import read_metrics

GUIDE = runs.ROOT / "docs" / "guides" / "english-to-chinese.md"

SMALLER = {"24000": "2500", "20e9": "8e3", "0.5%": "20%", "8": "2"}
"""Sizes in the guide, and what is typed in their place; every other word is the guide's own."""

FEWER = (
    "model.dtype=fp32",
    "validation.every_tokens=4e3",
    "validation.max_tokens=2e3",
    "checkpoint.every_tokens=4e3",
)
"""Overrides of the recipe: 16 bits are slow on a CPU, and so short a run would be scored at every step."""

CONTEXT, HIDDEN = 128, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the guide takes for granted: a base in Hugging Face form, and text in both languages."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("guide")
    try:
        tokenizer, english, chinese = texts.base_tokenizer(), texts.english(), texts.chinese()
    except InfrastructureError as error:
        pytest.skip(str(error))
    for name, documents in (("en", english.train[:12]), ("zh", chinese.train[:60])):
        (folder / name).mkdir()
        (folder / name / "text.jsonl").write_bytes(texts.lines(documents))
    (folder / "held-out").mkdir()
    held_out = [english.validation[0][:4000], chinese.validation[0][:2000]]
    (folder / "held-out" / "text.jsonl").write_bytes(texts.lines(held_out))
    (folder / "launch").symlink_to(runs.ROOT / "launch")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "models" / "Llama-2-7b-hf")
    (folder / "models" / "Llama-2-7b-hf" / "tokenizer.model").write_bytes(tokenizer)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """What each command of the guide printed, by its first words; the self-test has a test of its own."""
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in lines_to_type(GUIDE.read_text(encoding="utf-8")):
            words = [SMALLER.get(word, word) for word in words]
            name = " ".join(word for word in words[:3] if word.isalpha())
            if name != "rewarm selftest":
                said[name] = follow(words)
    return said


def follow(words):
    """Type a command; what it prints."""
    if words[0] == "rewarm":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(words[1:]) == 0, shlex.join(words)
        return printed.getvalue()
    assert words[:2] == ["deepspeed", "launch/train.py"]
    done = subprocess.run(
        [*runs.launcher(2), *words[1:], *FEWER],
        env={**runs.environment(), "CXX": "none"},  # gloo: a rank that waits leaves the core to the other
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_guide_leads_from_an_english_model_to_an_exported_chinese_one(answers, folder):
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    assert list(answers) == [
        "rewarm vocab train", "rewarm vocab extend", "rewarm vocab report", "rewarm data prepare",
        "rewarm model extend", "rewarm recipe new", "rewarm plan", "deepspeed", "rewarm export",
        "rewarm report",
    ]  # fmt: skip
    base, trained = (folder / "models" / name for name in ("Llama-2-7b-hf", "llama2-7b-zh-trained"))

    # English has the ids that it had, Chinese has far fewer, and the tokenizer is the export's.
    old = SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    new = AutoTokenizer.from_pretrained(trained)
    held_out = (folder / "held-out" / "text.jsonl").read_text(encoding="utf-8")
    english, chinese = (json.loads(line)["text"] for line in held_out.strip().split("\n"))
    assert new(english, add_special_tokens=False).input_ids == old.encode(english)
    assert len(new(chinese).input_ids) < 0.7 * len(old.encode(chinese))

    # Both phases were trained, and what English lost was measured from the first step to the last.
    records = read_metrics(folder / "runs" / "zh")
    last = records[-1]
    assert last["tokens"] == pytest.approx(8e3, rel=0.1)
    assert "phase 'all' begins" in answers["rewarm plan"]
    for stream in ("eval/upstream/en-web/bits_per_byte", "eval/downstream/zh-web/bits_per_byte"):
        assert sum(stream in record for record in records) >= 3, sorted(last)

    # The export is the last checkpoint in bf16: transformers' own model gives the same logits for both.
    checkpoint = find_checkpoint(folder / "runs" / "zh")
    exported = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    weights = rank_files.Reader(checkpoint.files)
    with torch.no_grad():
        own = LlamaForCausalLM(exported.config)
        for name, value in own.named_parameters():
            value.copy_(weights.whole(f"hf.{name}")[: len(value)].bfloat16())
        ids = new(chinese, return_tensors="pt").input_ids[:, :CONTEXT]
        assert int(ids.max()) >= 32_000
        difference = (exported(ids).logits - own(ids).logits).abs().max().item()
    assert difference == 0
    assert "zh" in answers["rewarm report"]
    assert "<svg" in (folder / "report.html").read_text()
