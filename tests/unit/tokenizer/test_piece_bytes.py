"""The bytes of each token, and their classes, against a character by character count."""

import numpy as np
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import byte_level, vocabularies
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.piece_bytes import BYTE_CLASSES, ByteClasses, piece_bytes

CHARACTERS = "the law of ABC é ü 2024 ９ Ａ 国家为了维护中人，。「」 かな カナ 한국 𠀀 € — Ж \n"
EXPECTED = {
    **dict.fromkeys("thelawofABCéüＡ", "latin"),
    **dict.fromkeys("2024９", "digits"),
    **dict.fromkeys("国家为了维护中人，。「」かなカナ한국𠀀", "cjk"),
}
"""The class of each; the others are `other`."""


def expected(text):
    """Bytes of each class."""
    found = dict.fromkeys(BYTE_CLASSES, 0)
    for character in text:
        found[EXPECTED.get(character, "other")] += len(character.encode())
    return found


@given(st.text(st.sampled_from(CHARACTERS), max_size=40))
def test_classes_of_single_bytes_are_those_of_their_characters(text):
    pieces = [bytes([byte]) for byte in range(256)]
    found = ByteClasses(pieces).count(np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    assert dict(zip(BYTE_CLASSES, found.sum(axis=0).tolist(), strict=True)) == expected(text)
    assert (found.sum(axis=1) == 1).all()


def test_a_character_whose_beginning_is_not_seen_is_other():
    pieces = [bytes([byte]) for byte in range(256)]
    found = ByteClasses(pieces).count(np.array([*"国".encode()[1:], ord("a")]))
    assert found.argmax(axis=1).tolist() == [3, 3, 1]


@given(st.text(st.sampled_from("the 中国人2 é\n"), min_size=1, max_size=30))
def test_the_tokens_of_a_text_have_its_bytes(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = open_tokenizer(vocabularies.saved(folder, vocabularies.BASE))
    encoder = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = encoder.encode(text)
    pieces = piece_bytes(tokenizer)
    assert b"".join(pieces[index] for index in ids).decode() == " " + text  # SentencePiece adds the first
    found = ByteClasses(pieces).count(np.array([*ids, tokenizer.eos_id]))
    assert found[-1].sum() == 0
    assert dict(zip(BYTE_CLASSES, found.sum(axis=0).tolist(), strict=True)) == expected(" " + text), text


def test_pieces_made_of_bytes_and_special_tokens(tmp_path):
    tokenizer = open_tokenizer(byte_level.save(tmp_path, byte_level.tokenizer_json(found=["<tool>"])))
    pieces = piece_bytes(tokenizer)
    by_name = dict(zip(tokenizer.pieces, pieces, strict=True))
    assert by_name["Ġhello"] == b" hello"
    assert by_name["ä¸Ń"] == "中".encode()
    assert (by_name["<|end|>"], by_name["<tool>"]) == (b"", b"<tool>")
