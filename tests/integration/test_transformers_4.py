"""An export is read alike by transformers 5, which trains it, and by transformers 4, which many have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers.model_tiny import CHINESE, ENGLISH, INIT, build, recipe, tokenizer
from tokenization.tokenizer.files import open_tokenizer
from trainer.checkpoint.card import Card
from trainer.checkpoint.export import export_model
from trainer.storage.safetensors import Weight

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("transformers_4_worker.py")
OLD = ("transformers==4.46.*", "tokenizers==0.20.*", "huggingface_hub<1")
NEEDED = ("requests", "urllib3", "charset-normalizer", "idna", "certifi")

ROPES = {
    "llama": {},
    "llama-theta": {"rope_parameters": "{rope_theta: 500000.0, rope_type: default}"},
    "llama-llama3": {
        "rope_parameters": "{rope_theta: 500000.0, rope_type: llama3, factor: 8.0, low_freq_factor: 1.0, "
        "high_freq_factor: 4.0, original_max_position_embeddings: 64}"
    },
    "llama-linear": {"rope_parameters": "{rope_theta: 20000.0, rope_type: linear, factor: 4.0}"},
    "mistral": {"rope_parameters": "{rope_theta: 1000000.0, rope_type: default}"},
    "qwen2": {"rope_parameters": "{rope_theta: 1000000.0, rope_type: default}"},
    "gpt_neox": {"rope_parameters": "{rope_theta: 25000.0, rope_type: default, partial_rotary_factor: 0.5}"},
}
"""Model by name; what is written here is what a reader of the older form got wrong."""

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 0]}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the older packages, to stand before the present ones on the path."""
    folder = tmp_path_factory.mktemp("transformers-4")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        *OLD,
        *NEEDED,
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(OLD)}: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """An export of each model, with a chat template and generation settings."""
    folder = tmp_path_factory.mktemp("exports")
    tok = tokenizer(folder / "tok", *ENGLISH, *CHINESE)
    (tok / "chat_template.jinja").write_text(TEMPLATE)
    size = open_tokenizer(tok).size
    for name, rope in ROPES.items():
        causal = build(recipe(**INIT[name.partition("-")[0]], **rope), size)
        weights = [Weight.of(*named) for named in causal.named_parameters()]
        export_model(
            weights, causal.hf.config, tok, folder / name,
            vocab_size=size, dtype="fp32", card=Card(name), generation=GENERATION,
        )  # fmt: skip
    return folder


def test_transformers_4_gives_the_logits_and_the_ids_of_transformers_5(site, exports, tmp_path):
    folders = [str(exports / name) for name in ROPES]
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    out = tmp_path / "out.pt"
    done = subprocess.run(
        [sys.executable, str(WORKER), str(out), *folders],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    old = torch.load(out)
    assert old["version"].startswith("4.46.")
    ids = torch.arange(5, 5 + 96).view(1, 96)
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                old[folder]["logits"], model(ids).logits, rtol=1e-5, atol=1e-6, msg=folder
            )
        forced = "PreTrainedTokenizerFast" in Path(folder, "README.md").read_text()
        tok = (PreTrainedTokenizerFast if forced else AutoTokenizer).from_pretrained(folder)
        texts = ["the law of a people", "国家为了维护人民的权利", "a  b\n\tc 𝄞"]
        assert old[folder]["ids"] == [tok(text)["input_ids"] for text in texts], folder
        assert {**old[folder]["generation"], **GENERATION} == old[folder]["generation"], folder
        assert old[folder]["template"] == tok.chat_template == TEMPLATE
        assert old[folder]["dtype"] == "torch.float32"
