"""A tokenizer directory as `transformers` loads it, against SentencePiece."""

from __future__ import annotations

import pytest
import sentencepiece

from tokenization.vocabulary import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "中国", "人民", "法律", "规定"]
    lines = [" ".join(words[(i * j) % 12] for j in range(1, 12)) for i in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))
    train.train_vocabulary([folder / "text.txt"], 340, folder / "out")
    return folder / "out"


def test_the_written_directory_loads_in_transformers(directory):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    lines = ["the 中国人民", "  the  ", "a\tb\n", "人民。”——", "The quick  brown fox", " " * 20]
    assert loaded(lines, add_special_tokens=False)["input_ids"] == processor.encode(lines)
    assert loaded("the")["input_ids"] == [1, *processor.encode("the")]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
    assert loaded.decode(loaded(" the  中国")["input_ids"], skip_special_tokens=True) == " the  中国"
    assert len(loaded) == processor.vocab_size()


def test_saving_it_again_keeps_the_ids(directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    first = transformers.AutoTokenizer.from_pretrained(directory)
    first.save_pretrained(tmp_path)
    second = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for line in ["the 中国人民  fox", "  leading", "\tdogs"]:
        assert second(line)["input_ids"] == first(line)["input_ids"]
