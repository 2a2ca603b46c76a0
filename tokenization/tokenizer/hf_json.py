"""`tokenizer.json`, the Hugging Face form of a BPE vocabulary, made from a SentencePiece model and back.

SentencePiece merges the adjacent pair whose concatenation is the piece with the highest score, the leftmost
of equals. `tokenizers` merges the pair that stands first in a list. Both do the same when the list holds
every split of every piece into two pieces, in the order of the pieces' scores. Pieces with one score (the
runs of spaces in LLaMA's vocabulary) are listed longest first: then a run grows from the left, as in
SentencePiece.
"""

from __future__ import annotations

from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization.errors import UserError
from tokenization.tokenizer.added import AddedToken

TokenPiece = spm.ModelProto.SentencePiece

SPACE = "▁"


def from_model(model: spm.ModelProto) -> dict[str, Any]:
    """Return the `tokenizer.json` that gives the same ids as the SentencePiece BPE `model`."""
    unk, bos = model.trainer_spec.unk_id, model.trainer_spec.bos_id
    added = [
        AddedToken(index, piece.piece, special=True).to_json()
        for index, piece in enumerate(model.pieces)
        if piece.type in (TokenPiece.CONTROL, TokenPiece.UNKNOWN)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": _begin_with(model.pieces[bos].piece, bos) if bos >= 0 else None,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[unk].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.piece: index for index, piece in enumerate(model.pieces)},
            "merges": _merges(model),
        },
    }


def _merges(model: spm.ModelProto) -> list[list[str]]:
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == TokenPiece.NORMAL}
    ranked = sorted(normal, key=lambda piece: (-normal[piece], -len(piece)))  # stable: then by id
    return [
        [piece[:cut], piece[cut:]]
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def _normalizers(model: spm.ModelProto) -> list[dict[str, Any]]:
    prefix = [{"type": "Prepend", "prepend": SPACE}] if model.normalizer_spec.add_dummy_prefix else []
    return [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _decoders(model: spm.ModelProto) -> list[dict[str, Any]]:
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *(strip if model.normalizer_spec.add_dummy_prefix else []),
    ]


def _begin_with(bos: str, bos_id: int) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def to_model(tokenizer_json: dict[str, Any], file: object) -> spm.ModelProto:
    """Return the SentencePiece BPE model that merges as `tokenizer_json` (read from `file`) does.

    Ids, pieces and merges are kept. The file has no scores: they become 0, −1, −2 … in the order of the
    merges, and runs of spaces that merge last all have −1e9, as in LLaMA's vocabulary.

    Raises:
        UserError: no SentencePiece model can give the same ids; the message has the reason.
    """

    def refuse(why: str) -> UserError:
        return UserError(
            f"{why}, so no SentencePiece model gives its ids",
            file=file,
            fix=f"use a LLaMA-style tokenizer, or the tokenizer.model that {file} was made from",
        )

    bpe = tokenizer_json["model"]
    if _splits_bytes(tokenizer_json):
        raise UserError(
            "is a byte-level BPE, as those of LLaMA 3 and Qwen2 are: it cannot be extended as a "
            "SentencePiece vocabulary is",
            file=file,
            fix="train with the base's own tokenizer, as launch/recipes/llama3-8b-zh.yaml does",
        )
    if bpe.get("type") != "BPE" or not bpe.get("byte_fallback"):
        raise refuse("is not a BPE with byte fallback")
    if not _is_llama_text(tokenizer_json):
        raise refuse("does not prepare text by `▁` for each space and one in front")
    by_id = {index: piece for piece, index in bpe["vocab"].items()}
    added = tokenizer_json.get("added_tokens") or ()
    beyond = [token for token in added if token["content"] not in bpe["vocab"]]
    by_id |= {token["id"]: token["content"] for token in beyond if token.get("special")}
    outside = [token["content"] for token in beyond if not token.get("special")]
    if outside or sorted(by_id) != list(range(len(by_id))):
        raise refuse(f"has tokens outside its vocabulary ({', '.join(outside) or 'gaps between ids'})")
    special = {token["content"] for token in added}
    model = spm.ModelProto()
    for index in range(len(by_id)):
        model.pieces.add(piece=by_id[index], type=_kind(by_id[index], bpe.get("unk_token"), special))
    _set_rules(model, bpe.get("unk_token"))
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in bpe["merges"]]
    if set(merges) != {tuple(merge) for merge in _merges(model)}:
        raise refuse("does not merge every split of its pieces")
    scores = _scores(merges)
    if scores is None:
        raise refuse("ranks one split of a piece before and another after a second piece")
    lowest = min(scores.values(), default=0.0)
    for piece in model.pieces:
        if piece.type == TokenPiece.NORMAL:
            lowest -= piece.piece not in scores
            piece.score = scores.get(piece.piece, lowest)
    return model


def _scores(merges: list[tuple[str, ...]]) -> dict[str, float] | None:
    """Return scores 0, −1, … by first appearance; None if the splits of one piece are not neighbours."""
    joined = ["".join(merge) for merge in merges]
    runs = {piece for piece in joined if set(piece) == {SPACE}}
    firsts = [at for at, piece in enumerate(joined) if piece in runs]
    runs_come_last = bool(firsts) and firsts[0] == len(joined) - len(firsts)
    scores: dict[str, float] = dict.fromkeys(runs, -1e9) if runs_come_last else {}
    previous = None
    ranked = [piece for piece in joined if piece not in scores]
    for piece in ranked:
        if piece != previous and piece in scores:
            return None
        scores.setdefault(piece, -float(len(scores) - (len(runs) if runs_come_last else 0)))
        previous = piece
    return scores


def _splits_bytes(tokenizer_json: dict[str, Any]) -> bool:
    """Tell whether a tokenizer's pieces are made of bytes."""
    rules = [tokenizer_json.get("pre_tokenizer") or {}, tokenizer_json.get("normalizer") or {}]
    inner = [one for rule in rules for one in rule.get("pretokenizers") or rule.get("normalizers") or ()]
    return any(rule.get("type") == "ByteLevel" for rule in (*rules, *inner))


def _is_llama_text(tokenizer_json: dict[str, Any]) -> bool:
    """Return whether a space becomes `▁` and one is put in front: legacy normalizer or unsplit Metaspace."""
    normalizer, pre = tokenizer_json.get("normalizer"), tokenizer_json.get("pre_tokenizer")
    if normalizer is None and pre is not None:
        return (
            pre.get("type") == "Metaspace"
            and pre.get("split") is False
            and pre.get("prepend_scheme") != "never"
        )
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return pre is None and normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}


def _kind(piece: str, unk: str | None, special: set[str]) -> int:
    if piece == unk:
        return TokenPiece.UNKNOWN
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return TokenPiece.BYTE
    return TokenPiece.CONTROL if piece in special else TokenPiece.NORMAL


def _set_rules(model: spm.ModelProto, unk: str | None) -> None:
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    spec, rules = model.trainer_spec, model.normalizer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spm.TrainerSpec.BPE, True, len(ids)
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = (
        ids.get(name, -1) for name in (unk or "<unk>", "<s>", "</s>", "<pad>")
    )
    rules.name, rules.add_dummy_prefix, rules.remove_extra_whitespaces = "identity", True, False
