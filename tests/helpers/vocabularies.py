"""Small SentencePiece models, made by hand."""

from __future__ import annotations

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm

Piece = spm.ModelProto.SentencePiece


def model_of(*pieces, kind=spm.TrainerSpec.BPE):
    """A model in LLaMA's layout: three special pieces, 256 bytes, then `pieces`, (text, score) each."""
    model = spm.ModelProto()
    model.pieces.add(piece="<unk>", type=Piece.UNKNOWN)
    model.pieces.add(piece="<s>", type=Piece.CONTROL)
    model.pieces.add(piece="</s>", type=Piece.CONTROL)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=Piece.BYTE)
    for piece, score in pieces:
        model.pieces.add(piece=piece, score=score, type=Piece.NORMAL)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = kind, True, len(model.pieces)
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
    rules = model.normalizer_spec
    rules.name, rules.add_dummy_prefix, rules.remove_extra_whitespaces = "identity", True, False
    return model


def encode(model, text):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return processor.encode(text, out_type=str)


def saved(folder, model):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


BASE = model_of(
    ("▁t", 0), ("he", -1), ("▁the", -2), ("中国", -3),
    ("▁", -1e9), ("▁▁", -1e9), ("▁▁▁▁", -1e9),
    ("t", -4), ("h", -5), ("e", -6), ("中", -7), ("国", -8), ("a", -9), ("。", -10), ("”", -11), ("—", -12),
)  # fmt: skip


ADD = model_of(
    ("人民", 0),      # in
    ("▁人民", -1),    # in: rooted in Han, and a space may lead
    ("he人", -2),     # out: ASCII letters
    ("中国", -3),     # out: the base has it
    ("——", -4),       # out: English uses dashes too
    ("。”", -5),      # in: rooted in CJK punctuation
    ("人3", -6),      # out: a digit
    ("国人民", -7),   # in: 国 + 人民
    ("民国", -8),     # in
    ("龙凤呈祥", -9), # out: no two of its characters merge
    ("鬼佬", -10),    # out: 佬 is not a piece
    ("に", -11),      # out: Hiragana is not allowed
    *((char, -12 - index) for index, char in enumerate("人民龙凤呈祥鬼")),
)  # fmt: skip
