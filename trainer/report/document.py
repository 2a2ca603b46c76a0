"""Pictures as files of their own: SVG documents, and PNG where a browser can draw them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tokenization import disk
from trainer.report.style import STYLE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

DRAW_S = 60.0
"""A browser that takes longer for a picture is given up."""


def svg_document(pictures: Sequence[str]) -> str:
    """Return charts, `<svg …>` elements, one below the other, as one SVG document on white ground."""
    style = "\n".join(line for line in STYLE.splitlines() if line.startswith((":root", "svg .", "svg text")))
    placed, total, widest = "", 0, 0
    for picture in pictures:
        width, height = size_of(picture)
        own = f'<svg x="0" y="{total}" width="{width}" height="{height}" '
        placed += picture.replace("<svg ", own, 1)
        total, widest = total + height, max(widest, width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {widest} {total}" width="{widest}" '
        f'height="{total}" font-family="sans-serif"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{placed}</svg>\n'
    )


def size_of(picture: str) -> tuple[int, int]:
    """Return width and height of a chart, a key below it included."""
    found = re.search(r'viewBox="0 0 (\d+) (\d+)"', picture)
    assert found is not None
    return int(found[1]), int(found[2])


def find_browser() -> str | None:
    """Return the program of a Chromium; None where none is installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def write_figures(pictures: dict[str, str], folder: Path) -> list[str]:
    """Write each picture as NAME.svg and, where a Chromium is installed, as NAME.png of twice the size.

    Returns:
        A line about what could not be written.

    Raises:
        InfrastructureError: the disk is full or fails.
    """
    with disk.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            disk.write_atomically(folder / f"{name}.svg", svg_document([picture]))
    browser = find_browser()
    if browser is None:
        return [
            f"{folder}: figures are written as SVG alone: a Chromium, which would draw the PNG, was not found"
        ]
    failed = [
        name for name, picture in pictures.items()
        if not _draw(browser, folder / f"{name}.svg", folder / f"{name}.png", *size_of(picture))
    ]  # fmt: skip
    return [f"{folder}: {browser} did not draw the PNG of {', '.join(failed)}"] if failed else []


def _draw(browser: str, svg: Path, png: Path, width: int, height: int) -> bool:
    """Draw a picture with a headless browser; tell whether it did."""
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=2",
    )
    size, out = f"--window-size={width},{height}", f"--screenshot={png.resolve()}"
    words = [browser, *options, size, out, svg.resolve().as_uri()]
    try:
        subprocess.run(words, capture_output=True, timeout=DRAW_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return png.exists()
