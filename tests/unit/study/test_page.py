"""A study's page, read as text and opened in a real browser."""

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers import studies
from tests.helpers.studies import arm
from tokenization.errors import UserError
from trainer.report import document
from trainer.report.document import find_browser
from trainer.study import page
from trainer.study.page import conclude, signs_line
from trainer.study.results import read_results
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


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed here")
def test_a_real_browser_draws_the_page_without_an_error(study, tmp_path):
    """The browser's own DOM and console, at the width of a phone and of a desk."""
    text = (study / "report.html").read_text()
    watched = tmp_path / "watched.html"
    script = """<script>
      const drawn = [...document.querySelectorAll('figure svg')].map(svg => {
        const box = svg.getBoundingClientRect();
        const lines = [...svg.querySelectorAll('path.line, circle.dot')].filter(one => {
          const own = one.getBoundingClientRect();
          return own.width > 0 && own.left >= box.left - 1 && own.right <= box.right + 1
              && own.top >= box.top - 1 && own.bottom <= box.bottom + 1;
        });
        return svg.parentElement.id + ':' + lines.length + ':' + (box.right <= innerWidth);
      });
      document.title = 'drawn ' + drawn.join(' ');
    </script></body>"""
    watched.write_text(text.replace("</body>", script))
    for width in (500, 1200):
        done = browse(watched, tmp_path, width)
        title = done.stdout.partition("</title>")[0]
        drawn = dict(re.findall(r"(upstream|downstream|trade-off):(\d+:\w+)", title))
        assert drawn == {"upstream": "6:true", "downstream": "6:true", "trade-off": "6:true"}
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
    assert document.write_figures(pictures, tmp_path, page.FIGURE_WIDTH, page.FIGURE_HEIGHT) == []
    head = (tmp_path / "one.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")) == (
        2 * page.FIGURE_WIDTH,
        2 * page.FIGURE_HEIGHT,
    )
