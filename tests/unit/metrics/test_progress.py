"""The progress display: columns that a log can be read by, a bar on a terminal."""

import io
import re

import pytest

from tests.helpers.metrics import Clock
from trainer.machine.log_lines import logger, show_log_lines
from trainer.metrics.progress import Progress, short


def test_a_log_has_fixed_columns_and_a_line_now_and_then():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10_000, 0, stream, clock=clock, every_s=10)
    for step in range(1, 31):  # one second and 100 tokens a step
        clock.now += 1
        progress.log({"step": step, "tokens": step * 100, "loss/train": 2.5, "lr": 3e-4, "grad_norm": 1.25})
    progress.log(
        {
            "step": 30,
            "tokens": 3000,
            "eval/upstream/bits_per_byte": 1.5,
            "eval/downstream/bits_per_byte": 2.25,
        }
    )
    header, *lines = stream.getvalue().splitlines()
    assert header.split()[:10] == [
        "step", "tokens", "done", "loss", "lr", "grad_norm", "tokens/s", "ETA", "upstream", "downstream"
    ]  # fmt: skip
    assert [line.split() for line in lines] == [
        # at once, then every 10 s, then the evaluation; ETA = the rest at 100 tokens a second
        ["1", "100", "1%", "2.5000", "3.000e-04", "1.250", "100", "0:01:39", "-", "-"],
        ["11", "1.10k", "11%", "2.5000", "3.000e-04", "1.250", "100", "0:01:29", "-", "-"],
        ["21", "2.10k", "21%", "2.5000", "3.000e-04", "1.250", "100", "0:01:19", "-", "-"],
        ["30", "3.00k", "30%", "2.5000", "3.000e-04", "1.250", "100", "0:01:10", "1.5000", "2.2500"],
    ]
    ends = {tuple(match.end() for match in re.finditer(r"\S+", line)) for line in lines}
    assert len(ends) == 1


def test_a_resumed_run_counts_its_rate_from_where_it_went_on():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10_000, 5_000, stream, clock=clock)
    clock.now += 10
    progress.log({"step": 60, "tokens": 6_000})
    assert stream.getvalue().splitlines()[1].split()[6:8] == ["100", "0:00:40"]


def test_a_terminal_gets_a_bar_with_rate_and_losses(capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    show_log_lines(rank=0)
    progress = Progress(1000, 0, stream)
    progress.log(
        {"step": 1, "tokens": 250, "loss/train": 2.5, "lr": 3e-4, "eval/upstream/bits_per_byte": 1.5}
    )
    logger.info("saved step 1")
    progress.close()
    assert "rewarm: saved step 1\n" in stream.getvalue()  # above the bar, and on a line of its own
    logger.info("after the bar")
    assert "after" not in stream.getvalue()
    assert capsys.readouterr().err == "rewarm: after the bar\n"
    shown = stream.getvalue().split("\r")[-1]
    assert "25%" in shown
    assert "tokens/s" in shown
    assert "loss 2.500 lr 3.00e-04 upstream 1.500 downstream -" in shown


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (9_994, "9.99k"),
        (9_996, "10.0k"),
        (24_576, "24.6k"),
        (99_960, "100k"),
        (999_600, "1.00M"),
        (297e9, "297G"),
        (1e13, "10.0T"),
    ],
)
def test_three_digits_and_a_unit(number, written):
    assert short(number) == written
