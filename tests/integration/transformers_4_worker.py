"""Loads exports with an older transformers: `python transformers_4_worker.py OUT.pt EXPORT …`."""

import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def main(out, exports):
    found = {"version": transformers.__version__}
    for export in exports:
        model = AutoModelForCausalLM.from_pretrained(export).eval()
        ids = torch.arange(5, 5 + 96).view(1, 96)
        with torch.no_grad():
            logits = model(ids).logits
        with open(f"{export}/README.md", encoding="utf-8") as card:
            named = "PreTrainedTokenizerFast" if "PreTrainedTokenizerFast" in card.read() else "AutoTokenizer"
        loader = {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}[named]
        tokenizer = loader.from_pretrained(export)
        texts = ["the law of a people", "国家为了维护人民的权利", "a  b\n\tc 𝄞"]
        found[export] = {
            "logits": logits,
            "ids": [tokenizer(text)["input_ids"] for text in texts],
            "template": tokenizer.chat_template,
            "generation": model.generation_config.to_dict(),
            "dtype": str(AutoModelForCausalLM.from_pretrained(export, torch_dtype="auto").dtype),
        }
    torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
