"""The README's first command, from text to report, on a user's own text and with its flags."""

import itertools
import json
import re
import subprocess

import numpy as np
import pytest

from tests.helpers import runs

QUICKSTART = runs.ROOT / "launch" / "quickstart.sh"


def quickstart(*flags: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(QUICKSTART), *flags],
        env=runs.environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--nonsense",), "unknown option --nonsense"),
        (("--nproc", "3"), "--nproc 3: give 1, 2, 4 or 8"),
        (("--nproc", "16"), "--nproc 16: give 1, 2, 4 or 8"),
        (("--out", "a b"), "give a path without spaces"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, said):
    done = quickstart(*flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_names_every_flag():
    done = quickstart("--help")
    assert done.returncode == 0
    for flag in ("--out", "--nproc", "--fast", "--english", "--chinese"):
        assert flag in done.stdout


def drawn(words: list[str], documents: int, between: str) -> list[str]:
    """Documents of 200 words, some of them frequent and most of them rare, as in any language."""
    random = np.random.default_rng(7)
    chances = 1 / np.arange(1, len(words) + 1)
    draws = random.choice(len(words), size=(documents, 200), p=chances / chances.sum())
    return [between.join(words[number] for number in draw) + "." for draw in draws]


def english(documents: int) -> list[str]:
    syllables = [
        first + vowel + last for first in "bcdfglmnprst" for vowel in "aeiou" for last in ("", "n", "r", "s")
    ]
    words = ["".join(pair) for pair in itertools.product(syllables, syllables)]
    return drawn(words[::9], documents, " ")


def chinese(documents: int) -> list[str]:
    signs = [chr(0x4E00 + number) for number in range(2000)]
    words = [sign + signs[(7 * number + 13) % 2000] for number, sign in enumerate(signs)] + signs
    return drawn(
        [word for pair in zip(words[:2000], words[2000:], strict=True) for word in pair], documents, ""
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A whole quickstart on generated text: as many documents as its budget needs."""
    folder = tmp_path_factory.mktemp("quickstart")
    for language, documents in (("english", english(1200)), ("chinese", chinese(700))):
        (folder / language).mkdir()
        lines = (json.dumps({"text": document}) for document in documents)
        (folder / language / "text.jsonl").write_text("\n".join(lines))
    flags = ("--english", str(folder / "english"), "--chinese", str(folder / "chinese"))
    out = folder / "out"
    done = quickstart("--out", str(out), "--nproc", "2", "--fast", "--fast", "--fast", *flags, timeout=1500)
    return done, out, flags


@pytest.mark.slow
def test_it_ends_with_a_table_and_a_report(demo):
    done, out, _ = demo
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all equal to the last digit" in done.stdout
    assert re.search(r"(?m)^replay-0 .*\n.*replay-25 ", done.stdout)
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", page).replace("https://arxiv.org", "")


@pytest.mark.slow
def test_a_second_call_does_nothing_twice(demo):
    _, out, flags = demo
    before = {path: path.stat().st_mtime for path in out.rglob("*.safetensors")}
    again = quickstart("--out", str(out), "--nproc", "2", "--fast", "--fast", "--fast", *flags, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {path: path.stat().st_mtime for path in out.rglob("*.safetensors")} == before
