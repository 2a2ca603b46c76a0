"""Which file of a directory is its tokenizer."""

import base64

import pytest
import tokenizers

from tokenization.errors import UserError
from tokenization.tokenizer.files import open_tokenizer


@pytest.fixture
def folder(tmp_path):
    """As LLaMA 3 is laid out: `tokenizer.model` is a list of tiktoken's."""
    ranks = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(ranks))
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_list_of_tiktokens_does_not_hide_the_tokenizer_beside_it(folder):
    opened = open_tokenizer(folder)
    assert (opened.path.name, opened.pieces) == ("tokenizer.json", ["a", "b", "ab"])


@pytest.mark.parametrize("name", ["", "tokenizer.model"])
def test_a_list_of_tiktokens_alone_is_named(folder, name):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model: is a tiktoken list.*tokenizer\.json"):
        open_tokenizer(folder / name)


def test_a_damaged_model_is_not_passed_over(folder):
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff\xff damaged")
    with pytest.raises(UserError, match=r"tokenizer\.model: is not a SentencePiece model"):
        open_tokenizer(folder)
