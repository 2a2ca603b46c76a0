"""Engines: on any text, all give the same ids."""

from __future__ import annotations

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.vocabularies import ADD, BASE, encode
from tokenization.tokenizer.encoder import create_engine
from tokenization.tokenizer.files import Tokenizer
from tokenization.vocabulary.extend import append, choose_pieces

words = st.text(alphabet="the a中国人民—”。3\n\t<s>▁é", max_size=30) | st.text(max_size=30)


@pytest.fixture(scope="module")
def grown():
    chosen, _ = choose_pieces(BASE, [piece.piece for piece in ADD.pieces[259:]], ["han"], None)
    return append(BASE, chosen)


@pytest.fixture(scope="module")
def engines(grown):
    tokenizer = Tokenizer(None, grown, None, {})
    return {name: create_engine(tokenizer, name) for name in ("sentencepiece", "tokenizers", "gigatoken")}


@settings(max_examples=300, deadline=None)
@given(text=words)
@example("<s>the</s>")
@example(" " * 40 + "the" + " " * 7)
def test_engines_agree_on_any_text(engines, text):
    ids = {name: engine.encode([text])[0].tolist() for name, engine in engines.items()}
    assert ids["tokenizers"] == ids["sentencepiece"]
    assert ids["gigatoken"] == ids["sentencepiece"]


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(words | st.sampled_from(["", "\0", "the\0 the", " ", "中国 "]), max_size=6))
def test_engines_keep_documents_apart(engines, texts):
    expected = [engines["sentencepiece"].encode([text])[0].tolist() for text in texts]
    for name, engine in engines.items():
        ids, lengths = engine.encode(texts)
        assert lengths.tolist() == [len(row) for row in expected], name
        assert ids.tolist() == [index for row in expected for index in row], name


@settings(max_examples=300, deadline=None)
@given(text=words.filter(lambda text: "▁" not in text))
def test_round_trip_of_any_text(grown, text):
    processor = sentencepiece.SentencePieceProcessor(model_proto=grown.SerializeToString())
    assert processor.decode(processor.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=0x2E7F), max_size=40))
def test_text_without_the_added_scripts_keeps_its_ids(grown, text):
    assert encode(grown, text) == encode(BASE, text)
