"""A study's page, read as text and opened in a real browser."""

import re
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.helpers import studies
from tests.helpers.studies import arm
from tokenization.errors import UserError
from trainer.report import document
from trainer.report.document import find_browser
from trainer.study import laws, page
from trainer.study.law_section import fit_study
from trainer.study.observed import studied_arms
from trainer.study.page import conclude, signs_line
from trainer.study.results import StudyRecord, read_record, read_results, write_record
from trainer.study.summary import summarize

ENDS = {
    "replay-0": [(3.00, 2.00), (3.02, 2.01), (2.99, 1.99)],
    "replay-1": [(2.40, 2.01), (2.41, 2.02), (2.39, 2.00)],
    "replay-5": [(2.25, 2.02), (2.26, 2.03), (2.24, 2.01)],
    "replay-10": [(2.20, 2.03), (2.21, 2.04), (2.19, 2.02)],
    "replay-25": [(2.10, 2.07), (2.11, 2.08), (2.09, 2.06)],
    "replay-50": [(2.02, 2.15), (2.03, 2.16), (2.01, 2.14)],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "study"
    studies.write_study(out, "replay", ENDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "find_browser", lambda: None)
        told = conclude(out)
    (out / "told.txt").write_text(told)
    return out


@pytest.fixture(scope="module")
def lawful(tmp_path_factory) -> Path:
    """A study whose arms allow laws, with few fits in the bootstrap."""
    out = tmp_path_factory.mktemp("lawful") / "study"
    studies.write_lawful_study(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "find_browser", lambda: None)
        patch.setattr(page, "fit_study", partial(fit_study, bootstraps=15))
        (out / "told.txt").write_text(conclude(out))
    return out


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.loaded += [value for name, value in attrs if name == "src"]


def test_the_page_has_question_verdicts_figures_and_table_and_fetches_nothing(study):
    text = (study / "report.html").read_text()
    tags = Tags(text)
    assert tags.found.count("svg") == 3
    assert tags.loaded == []
    assert not {"script", "link", "iframe", "img"} & set(tags.found)
    assert "@import" not in text
    assert "url(" not in text
    assert "How much of the old data has to be replayed?" in text
    assert text.count("<span class='outcome'>holds</span>") == 3
    assert "below 15M a study shows signs, not ratios" in text
    assert "grey line" not in text, "there are no averages"
    assert "prefers-color-scheme: dark" in text
    told = (study / "told.txt").read_text()
    assert "holds: 1 % of replay removes more than half of the forgetting" in told
    for name in ENDS:
        assert name in text
        assert name in told


def test_each_figure_is_a_document_of_its_own(study):
    names = sorted(path.name for path in (study / "figures").iterdir())
    assert names == ["downstream.svg", "trade-off.svg", "upstream.svg"]
    for name in names:
        root = ElementTree.parse(study / "figures" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    upstream = (study / "figures" / "upstream.svg").read_text()
    assert upstream.count('class="band"') == len(ENDS)
    plane = (study / "figures" / "trade-off.svg").read_text()
    assert plane.count('class="dot"') == len(ENDS)
    assert plane.count('class="pale"') == 3 * len(ENDS)
    assert plane.count(' stroke-dasharray="') == 1  # the front
    assert "was not found" in (study / "told.txt").read_text()


def test_a_page_of_someone_else_is_not_replaced(study, tmp_path):
    studies.write_study(tmp_path / "study", "replay", {"replay-0": [(3.0, 2.0)]})
    (tmp_path / "study" / "report.html").write_text("my own")
    with pytest.raises(UserError, match="is not a page that rewarm made"):
        conclude(tmp_path / "study")
    assert (tmp_path / "study" / "report.html").read_text() == "my own"


def test_large_models_need_no_warning():
    assert signs_line([arm("a", 0, 2.0, 2.0, parameters=15_000_000)]) == ""
    assert "has 1.00M parameters" in signs_line([arm("a", 0, 2.0, 2.0), arm("b", 0, 2, 2, parameters=10**8)])


def test_laws_stand_on_the_page_with_intervals_residuals_and_a_back_test(lawful):
    text, told = (lawful / "report.html").read_text(), (lawful / "told.txt").read_text()
    section = text[text.index("<section id='laws'>") :]
    assert section.count("<figure ") == len(LAWS)
    for name in LAWS:
        svg = ElementTree.parse(lawful / "figures" / f"{name}.svg").getroot()
        assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) > 50
        assert f"<a href='figures/{name}.svg'>SVG</a>" in section
    assert "L = L0 + A·D^b/((1 + B·p)·N)^a + E" in section
    (b,) = re.findall(r"<th scope='row'>b</th><td class='n'>([\d.]+)</td><td>\[([\d.]+), ([\d.]+)\]", section)
    value, low, high = map(float, b)
    assert value == pytest.approx(0.45, abs=0.02), "what was planted"
    assert low < value < high < 0.5
    assert "bootstrap of 15 fits" in section
    assert "96 scores of 12 arms: mean relative error 0." in section
    assert "the second half of the tokens</th><td class='n'>0." in section
    assert "held: what it stands for did not vary" in section, "all arms have one size"
    assert re.search(
        r"law of forgetting on upstream: mean relative error 0\.\d+%; back-test, the second", told
    )
    assert "not fitted" not in told


def test_where_no_law_can_be_fitted_one_line_says_why(study, tmp_path, monkeypatch):
    monkeypatch.setattr(document, "find_browser", lambda: None)
    section = (study / "report.html").read_text().partition("<section id='laws'>")[2]
    assert section.count("Not fitted: the 18 arms that ended differ neither in their replay") == 1
    assert "<figure" not in section
    few, short, none = tmp_path / "few", tmp_path / "short", tmp_path / "none"
    studies.write_lawful_study(few, seeds=1)
    trained = read_record(few)
    (few / "study.json").unlink()
    write_record(few, replace(trained, arms=trained.arms[:2]))
    assert fit_study(few).missing == (
        "the law of forgetting on upstream takes three arms, and 2 ended with scores",
    )
    studies.write_lawful_study(short, seeds=1, scores=2)
    (short / "study.json").unlink()
    write_record(short, replace(trained, arms=trained.arms[:4]))
    (reason,) = fit_study(short).missing
    assert "the law of forgetting on upstream has 4 free parameters, and 4 scores" in reason
    write_record(none, StudyRecord("replay", "recipe.yaml", ()))
    assert "not fitted: no arm has ended" in conclude(none)


def test_a_law_that_cannot_be_fitted_or_an_arm_that_cannot_be_read_leaves_the_page(
    lawful, tmp_path, monkeypatch
):
    def diverge(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(document, "find_browser", lambda: None)
    monkeypatch.setattr(laws, "least_squares", diverge)
    out = tmp_path / "study"
    shutil.copytree(lawful, out)
    told = conclude(out)
    assert told.count("not fitted: the fit of the law of forgetting on upstream did not end (SVD") == 1
    assert "holds: The more is replayed" in told
    (out / "replay-5" / "recipe.resolved.yaml").write_text("seq_len: [")
    with pytest.raises(UserError):
        studied_arms([out])
    assert "an arm cannot be read" in fit_study(out).missing[0]


LAWS = ("law-forgetting-upstream", "law-D-CPT-upstream", "law-D-CPT-downstream")

FIGURES = ("upstream", "downstream", "trade-off", *LAWS)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed here")
def test_a_real_browser_draws_the_page_without_an_error(lawful, tmp_path):
    """The browser's own DOM and console, at the width of a phone and of a desk."""
    text = (lawful / "report.html").read_text()
    watched = tmp_path / "watched.html"
    script = """<script>
      addEventListener('load', () => {
        const drawn = [...document.querySelectorAll('figure svg')].map(svg => {
          const box = svg.getBoundingClientRect();
          const lines = [...svg.querySelectorAll('path.line, circle.dot')].filter(one => {
            const own = one.getBoundingClientRect();
            return own.width > 0 && own.left >= box.left - 1 && own.right <= box.right + 1
                && own.top >= box.top - 1 && own.bottom <= box.bottom + 1;
          });
          return svg.parentElement.id + ':' + (lines.length > 5) + ':' + (box.right <= innerWidth);
        });
        const fits = document.documentElement.scrollWidth <= innerWidth;
        parent.document.title = 'drawn ' + drawn.join(' ') + ' width:' + innerWidth + ':' + fits;
      });
    </script></body>"""
    scripted = text.replace("</body>", script)
    phone = (
        f"<title></title><iframe width=360 height=800 style='border:0' srcdoc='{escape(scripted)}'></iframe>"
    )
    for width, shown in ((360, phone), (1200, scripted)):
        watched.write_text(shown)
        done = browse(watched, tmp_path, max(width, 500))  # a window is never narrower
        title = done.stdout.partition("</title>")[0]
        assert dict(re.findall(r"(\S+):(\w+:true)", title)) == {
            **dict.fromkeys(FIGURES, "true:true"),
            "width": f"{width}:true",
        }
        assert "CONSOLE" not in done.stderr
    watched.write_text(text.replace("</body>", "<script>missing()</script></body>"))
    assert "CONSOLE" in browse(watched, tmp_path, 500).stderr


def browse(path: Path, folder: Path, width: int) -> subprocess.CompletedProcess[str]:
    """The DOM of a page on standard output, and its console among the lines of standard error."""
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
    )
    own = (f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900")
    words = [find_browser(), *options, *own, path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed here")
def test_a_png_of_a_figure_is_drawn_by_the_browser(study, tmp_path):
    pictures = {"one": page.draw_study(summarize(read_results(study)))["upstream"]}
    width, height = document.size_of(pictures["one"])
    assert document.write_figures(pictures, tmp_path) == []
    head = (tmp_path / "one.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")) == (
        2 * width,
        2 * height,
    )
