"""No word of a picture is cut by the picture's edge, in the browser that shows it."""

import re
import shutil
import subprocess

import pytest

from trainer.report.charts import Line, chart
from trainer.report.style import STYLE

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

LABELS = (
    "mammoth",
    "WWWWWWWWWWWWWWWWWWWWWW",
    "replay-25",
    "复述复述复述复述复述复述复述复述复述",
    "щщщщщщщщ",
    "🦣🦣🦣",
    "ÅÅÅ",
)

BEYOND = """<script>
const cut = [];
document.querySelectorAll('svg').forEach(picture => picture.querySelectorAll('text').forEach(text => {
  const box = text.getBBox(), view = picture.viewBox.baseVal;
  if (box.x < 0 || box.x + box.width > view.width || box.y < 0 || box.y + box.height > view.height)
    cut.push(text.textContent);
}));
document.title = 'cut: ' + cut.join('|');
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_no_label_is_cut_on_a_phone(tmp_path):
    form = "{:,.2f}".format
    pictures = [
        chart([Line(label, 0, [0.0, 1.0], [0.0, high])], x_format=form, y_format=form, at_end=at_end)
        for label in LABELS
        for at_end in (False, True)
        for high in (1.0, 123_456.0)
    ]
    several = [Line(f"{label}-{n}", n, [0.0, 1.0], [0.0, n / 7]) for n in range(9) for label in LABELS]
    pictures += [
        chart(several, x_format=form, y_format=form, at_end=at_end, x_title="measured, bits per byte")
        for at_end in (False, True)
    ]
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><body>{''.join(pictures)}{BEYOND}", "utf-8"
    )
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--window-size=390,900",  # a phone, on which letters are larger in a picture
        f"--user-data-dir={tmp_path / 'c'}",
    )
    shown = subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=240, check=False
    )
    assert re.findall("<title>cut: (.*?)</title>", shown.stdout) == [""]
