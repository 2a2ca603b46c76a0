"""Text becomes ids: exactly the reference's, by the fastest engine that proves to agree with it.

The reference is SentencePiece on `tokenizer.model`, or `tokenizers` on `tokenizer.json` where that is all
there is, or where added tokens are to be found in texts. It is proved itself: the whole added vocabulary must
have the ids that the files give it. Other engines read the equivalent `tokenizer.json`. A text that spells a
special token such as `</s>` is text. An engine that disagrees on one line is not used, and it is said why.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm

from tokenization import tokenizer_json
from tokenization.added import AddedToken
from tokenization.errors import UserError
from tokenization.tokenizer_files import Tokenizer

Encoded = tuple[np.ndarray, np.ndarray]
"""Ids of several texts end to end, and how many belong to each text."""

_MEMORY_MB = 200

HARD_LINES: tuple[str, ...] = (
    "",
    " ",
    "\n",
    " leading space",
    "   three leading",
    "trailing  ",
    "two  spaces   three    four",
    *(" " * count + "x" for count in range(4, 40)),
    "tab\tand\t\ttabs\t",
    "CRLF line\r\nanother\r\n",
    "line\n\n\nlines\u2028\u2029\x85\x0b\x0c",
    "NUL \x00 inside\x00",
    "controls \x01\x02\x1b[0m\x7f",
    "<s>special</s> <unk> <pad> <0x0A> [INST]",
    "▁lower one eighth ▁▁ block",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３，。！？：；（）",
    "“curly” ‘quotes’ — dash – … ellipsis · ¥ €",
    "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇨🇳 ☎️ 1️⃣",
    "e\u0301 é ﬁ ﬃ Å Å ½ ² Ⅳ ㈠ ㎏",
    "\ufeffBOM \ufffd replaced \u200b\u200c\u200d\u2060 zero width \xad",
    "private \ue000\uf8ff\U000f0000 last \U0010ffff before surrogates \ud7ff",
    "繁體字：臺灣、憂鬱的龜、龍鳳",
    "生僻字：𠮷𡃁𪚥𫝆𬺰𱁬䶮㐀龘靐",
    "第十二条 第一百二十三条 二〇二四年",
    "中英 mixed 文本 with 数字 3.14 和 URL https://a.b/c?d=e&f=g",
    "日本語のテキスト 한국어 текст العربية עברית हिन्दी ไทย",
    "def f(x):\n\treturn {'a': [x ** 2 for _ in range(10)]}\n",
    "0123456789 1,000,000 1e-4 0x1F 2024-01-01",
    *(
        char * count
        for char in ("a", "-", "=", "中", "。", "哈", "😀", "\n", "\t")
        for count in (2, 3, 7, 64, 1001)
    ),
    "ab" * 500,
    "的了" * 500,
)
"""Lines that have told tokenizers apart. A long line without a break comes from `long_lines`."""


def long_lines() -> list[str]:
    """Single lines of 1 MB of Chinese, and of a quarter of that of English and of one character."""
    seeds = {"全国人民代表大会常务委员会，": 20, "The quick brown fox jumps over the lazy dog ": 18, "a": 18}
    return [seed * ((1 << size) // len(seed.encode())) for seed, size in seeds.items()]


class Engine(Protocol):
    """One way to encode; each process has its own."""

    name: str

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of `texts`, without BOS or EOS, on this thread."""
        ...


@dataclass(frozen=True)
class Choice:
    """The engine to use, and a line for each faster one that is not used."""

    engine: Engine
    dropped: list[str]


class SentencePieceEngine:
    """The reference where there is a `tokenizer.model`."""

    name = "sentencepiece"

    def __init__(self, model: spm.ModelProto, threads: int = 1) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self._threads = threads

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Engine`."""
        return _joined(self._processor.encode(list(texts), num_threads=self._threads))


class TokenizersEngine:
    """Hugging Face's Rust library; the reference where there is only a `tokenizer.json`."""

    name = "tokenizers"

    def __init__(self, text: str) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.encode_special_tokens = True  # they are not looked for in texts

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Engine`."""
        # One by one: the batch call starts threads, which a forked worker must not.
        return _joined([self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts])

    def id_of(self, token: str) -> int | None:
        """The id of a piece or an added token, or None where it is neither."""
        index: int | None = self._tokenizer.token_to_id(token)
        return index


class GigatokenEngine:
    """gigatoken's Rust library.

    Its call for one text remembers the words that it has met, which its call for a batch does not, and has
    no cost per document. So documents are joined by NUL, a byte that merges with nothing, and told apart
    again by its id. What it remembers is dropped when it has grown by `_MEMORY_MB`.
    """

    name = "gigatoken"

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokenizer: Any = None
        self._load()
        self._between, self._nul = self._separator()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Engine`."""
        if not texts:
            return _joined([])
        if not self._between:
            return self._batch(texts)
        odd = [index for index, text in enumerate(texts) if not text or "\0" in text]
        if not odd:
            return self._together(texts)
        plain = [text for text in texts if text and "\0" not in text]
        rows = split(self._together(plain)) if plain else []
        for index in odd:
            rows.insert(index, self._single(texts[index]))
        return np.concatenate(rows), np.array([row.size for row in rows], dtype=np.int64)

    def _together(self, texts: Sequence[str]) -> Encoded:
        ids = self._single(self._between.join(texts))
        between = ids == self._nul
        ends = np.append(np.flatnonzero(between), ids.size)
        lengths = np.diff(ends, prepend=-1) - 1
        if lengths.size != len(texts):
            raise RuntimeError(f"gigatoken gave {lengths.size} documents for {len(texts)}")
        if _resident_mb() > self._full_mb:
            self._load()
        return ids[~between], lengths

    def _single(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text))

    def _batch(self, texts: Sequence[str]) -> Encoded:
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def _load(self) -> None:
        import gigatoken

        self._tokenizer = None  # first, so that two are never held at once
        self._tokenizer = gigatoken.Tokenizer.from_json(self._text)
        self._full_mb = _resident_mb() + _MEMORY_MB

    def _separator(self) -> tuple[str, int]:
        """What to put between documents so that each is encoded as if alone, and the id of the NUL in it.

        Without a dummy prefix that is NUL, with one NUL and a space; nothing where text is split before
        it is merged, or a piece has a NUL in it.
        """
        held = json.loads(self._text)
        if held.get("pre_tokenizer") or not held["model"].get("byte_fallback"):
            return "", -1
        if any("\0" in piece for piece in held["model"]["vocab"]):
            return "", -1
        first, second = self._single("x").tolist(), self._single(" y").tolist()
        for between in ("\0 ", "\0"):
            joined = self._single(f"x{between} y").tolist()
            if joined[: len(first)] == first and joined[len(first) + 1 :] == second:
                return between, joined[len(first)]
        return "", -1


def create(tokenizer: Tokenizer, name: str) -> Engine:
    """The engine `name`, whether it agrees or not."""
    return _engines(tokenizer)[name]()


def reference(tokenizer: Tokenizer, threads: int = 1) -> Engine:
    """The engine whose ids are right by definition; SentencePiece on so many `threads`.

    Raises:
        UserError: its own library cannot read the tokenizer, or does not give an added token its id.
    """
    _refuse_inexact(tokenizer)
    try:
        if tokenizer.model is not None and not _found_in_texts(tokenizer):
            return SentencePieceEngine(tokenizer.model, threads)
        engine = TokenizersEngine(_same_json(tokenizer))
    except Exception as error:  # SentencePiece raises RuntimeError, tokenizers Exception itself
        raise UserError(f"cannot be loaded ({error})", file=tokenizer.path, mend="is it damaged?") from None
    if (wrong := next(_wrong_ids(tokenizer, engine), None)) is not None:
        mend = "give added tokens the ids that follow on those of the vocabulary, without a gap"
        raise UserError(f"cannot be used: {wrong}", file=tokenizer.path, mend=mend)
    return engine


def _refuse_inexact(tokenizer: Tokenizer) -> None:
    """Refuse tokens found in texts, which SentencePiece does not know, where no `tokenizer.json` equals it.

    Raises:
        UserError: `tokenizer.model` is not one that `tokenizers` encodes alike.
    """
    if tokenizer.model is None or not (found := _found_in_texts(tokenizer)):
        return
    if tokenizer.model.trainer_spec.model_type != spm.TrainerSpec.BPE or disagreements(
        tokenizer.model, HARD_LINES
    ):
        raise UserError(
            f"does not have the added token {found[0].content!r}, which is to be found in texts, and no"
            " tokenizer.json equals it",
            file=tokenizer.path,
            mend='mark it as "special": true in tokenizer_config.json, or leave it out',
        )


def _found_in_texts(tokenizer: Tokenizer) -> list[AddedToken]:
    return [token for token in tokenizer.added_vocabulary if not token.special]


def _wrong_ids(tokenizer: Tokenizer, engine: Engine) -> Iterator[str]:
    """What is wrong with the ids that an engine gives the added vocabulary, against those in its files."""
    if isinstance(engine, TokenizersEngine):
        for token in tokenizer.added_vocabulary:
            if (given := engine.id_of(token.content)) != token.id:
                yield f"{engine.name} gives {token.content!r} the id {given}, and its file {token.id}"
    found = [token for token in _found_in_texts(tokenizer) if not token.flags[0]]
    if not found:
        return
    for token, row in zip(found, split(engine.encode([token.content for token in found])), strict=True):
        if row.tolist() != [token.id]:
            yield f"{engine.name} makes {row.tolist()} of {token.content!r}, and the file gives it {token.id}"


def added_lines(tokenizer: Tokenizer) -> list[str]:
    """Lines that spell each added token, alone and within a text."""
    return [
        line
        for token in tokenizer.added_vocabulary
        for line in (token.content, f"a{token.content}b", f"中 {token.content} 文 {token.content}")
    ]


def choose(tokenizer: Tokenizer, sample: Sequence[str], *, only: str | None = None) -> Choice:
    """The fastest engine that gives the reference's ids on `sample`, the hard lines and the long ones.

    Which is faster is known from `benchmarks/encode.py`, not timed anew: on a short sample a clock says
    little, and one job should not choose otherwise than another. `only` names the engine to take; it must
    agree as well.

    Raises:
        UserError: the engine asked for does not exist or does not agree.
    """
    engines = _engines(tokenizer)
    if only is not None and only not in engines:
        raise UserError(f"is not one of {', '.join(engines)}", field="--engine", value=only)
    truth = reference(tokenizer, threads=os.cpu_count() or 1)
    lines = [*HARD_LINES, *long_lines(), *added_lines(tokenizer), *sample]
    dropped: list[str] = []
    # The reference is the slower one, so it begins at once, beside the making of the other.
    with ThreadPoolExecutor(1) as beside:
        expected = beside.submit(truth.encode, lines)
        for name in engines if only is None else [only]:
            if name == truth.name:
                return Choice(engines[name](), dropped)
            try:
                engine = engines[name]()
                found = split(engine.encode(lines))
                wrong = _first_difference(lines, split(expected.result()), found)
                why = f"its ids differ from {truth.name}'s on {wrong[:60]!r}" if wrong is not None else None
                why = next(_wrong_ids(tokenizer, engine), why)
            except Exception as error:  # an engine may fail in any way that its own library knows
                why = readable(error)
            if why is None:
                return Choice(engine, dropped)
            dropped.append(f"{name} is not used: {why}")
    raise UserError(f"cannot be the engine: {dropped[0]}", field="--engine", value=only)


def disagreements(
    model: spm.ModelProto, lines: Sequence[str], held: Mapping[str, Any] | None = None
) -> list[str]:
    """The `lines` on which `tokenizers`, reading a `tokenizer.json`, is not SentencePiece with `model`.

    `held` is what the file holds; by default what `model` is written as.
    """
    read = held if held is not None else tokenizer_json.from_model(model)
    engines = (SentencePieceEngine(model), TokenizersEngine(_bare_json(read)))
    left, right = (split(engine.encode(lines)) for engine in engines)
    return [line for line, a, b in zip(lines, left, right, strict=True) if not np.array_equal(a, b)]


def split(encoded: Encoded) -> list[np.ndarray]:
    """The ids of each text on its own."""
    ids, lengths = encoded
    return np.split(ids, np.cumsum(lengths)[:-1]) if lengths.size else []


def readable(error: BaseException) -> str:
    """Why an engine failed, in words: without the place in its library's source."""
    text = " ".join(re.split(r"\bLocation:|\bStack backtrace|, src/", str(error))[0].split())
    if byte := re.search(r"no single-byte vocab entry for byte (0x[0-9a-fA-F]{2})", text):
        return f"it needs a piece for every byte, and the vocabulary has none for {byte[1]}"
    return f"{type(error).__name__}: {text}"


def _engines(tokenizer: Tokenizer) -> dict[str, Callable[[], Engine]]:
    """How to make each engine that can serve the tokenizer, the fastest first."""
    model = tokenizer.model
    slow: dict[str, Callable[[], Engine]] = {}
    if model is not None and not _found_in_texts(tokenizer):
        slow = {"sentencepiece": lambda: SentencePieceEngine(model)}
        if model.trainer_spec.model_type != spm.TrainerSpec.BPE:
            return slow
    same = _same_json(tokenizer)
    fast: dict[str, Callable[[], Engine]] = {"gigatoken": lambda: GigatokenEngine(_without_special(same))}
    return fast | slow | {"tokenizers": lambda: TokenizersEngine(same)}


def _same_json(tokenizer: Tokenizer) -> str:
    """The `tokenizer.json` that gives the tokenizer's ids, added tokens included."""
    if tokenizer.model is not None:
        held = tokenizer_json.from_model(tokenizer.model)
    else:
        held = dict(tokenizer.json or {})
    beside = [token.to_json() for token in tokenizer.added]
    return _bare_json({**held, "added_tokens": [*(held.get("added_tokens") or ()), *beside]})


def _bare_json(held: Mapping[str, Any]) -> str:
    """A `tokenizer.json` that puts nothing around a text."""
    bare = {**held, "post_processor": None, "truncation": None, "padding": None}
    return json.dumps(bare, ensure_ascii=False)


def _without_special(text: str) -> str:
    """A `tokenizer.json` for gigatoken, which looks for special tokens: those in a text are text.

    It takes the ids of the other added tokens from the file, where `tokenizers` counts them anew.
    """
    held = json.loads(text)
    held["added_tokens"] = [token for token in held.get("added_tokens") or () if not token.get("special")]
    return json.dumps(held, ensure_ascii=False)


def _resident_mb() -> float:
    """Memory that this process holds, where the system tells it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def _first_difference(
    lines: Sequence[str], left: Sequence[np.ndarray], right: Sequence[np.ndarray]
) -> str | None:
    for line, a, b in zip(lines, left, right, strict=True):
        if not np.array_equal(a, b):
            return line
    return None


def _joined(rows: Sequence[Sequence[int]]) -> Encoded:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
    return ids, lengths
