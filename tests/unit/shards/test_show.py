"""A person sees the text of a sample, and which documents it is of."""

import json

import pytest

from tests.helpers import runs
from tokenization.errors import UserError
from tokenization.shards.show import show_sample
from tokenization.shards.store import open_tokens
from tokenization.vocabulary.train import train_vocabulary
from trainer.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


def test_samples_put_together_are_the_documents(data):
    """Each document's text comes back, whatever the samples cut."""
    store, seq_len, found = open_tokens(data / "en-val"), 50, {}
    for sample in range(store.samples(seq_len)):
        for part in show_sample(data / "en-val", sample, seq_len, data / "tokenizer").documents:
            if part.skipped == 0:
                found[part.document] = part.text
    texts = runs.text("en", 20, 4)
    assert len(found) >= 18
    for document, shown in found.items():
        assert texts[document].startswith(shown.rstrip("\ufffd")[:20] or "nothing"), document


def test_the_command_names_the_documents(data, capsys):
    words = ["data", "show", str(data / "zh-val"), "--sample", "1", "--seq-len", "64"]
    assert main([*words, "--tokenizer", str(data / "tokenizer"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    store = open_tokens(data / "zh-val")
    lengths, at = store.parts[0].lengths.tolist(), 64
    expected, begins = [], 0
    for document, length in enumerate(lengths):
        if begins < at + 65 and at < begins + length:
            expected.append([document, max(at - begins, 0)])
        begins += length
    assert [[one["document"], one["skipped"]] for one in shown["documents"]] == expected
    assert sum(one["tokens"] for one in shown["documents"]) == 65


def test_a_sample_that_is_not_there_is_said(data):
    with pytest.raises(UserError, match=r"--sample: .*use 0 to "):
        show_sample(data / "en", 10**6, 32, data / "tokenizer")


def test_another_tokenizer_is_refused(data, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(runs.text("en", 300, 9)), encoding="utf-8")
    train_vocabulary([corpus], 300, tmp_path / "other")
    with pytest.raises(UserError, match=r"--tokenizer: .*is not the tokenizer of"):
        show_sample(data / "en", 0, 32, tmp_path / "other")
