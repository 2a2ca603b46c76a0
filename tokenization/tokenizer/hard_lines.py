"""Lines on which encoders have given wrong ids; every engine is checked on them."""

from __future__ import annotations

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
"""Lines on which tokenizers differ. Long lines without a break come from `long_lines`."""


def long_lines() -> list[str]:
    """Return single lines: 1 MB of Chinese, and 256 KB each of English and of one character."""
    seeds = {"全国人民代表大会常务委员会，": 20, "The quick brown fox jumps over the lazy dog ": 18, "a": 18}
    return [seed * ((1 << size) // len(seed.encode())) for seed, size in seeds.items()]
