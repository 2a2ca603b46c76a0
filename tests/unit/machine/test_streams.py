"""A run outlives what reads its log."""

import os
import subprocess
import sys

import pytest

RUN = """
import sys
from trainer.machine.streams import enduring
with enduring("stdout", "stderr"):
    for number in range(200):
        print("x" * 1000, file=sys.stderr)
        print("y" * 1000, flush=True)
    open(sys.argv[1], "w").write("done")
"""


def run(tmp_path, **streams):
    """What a process that prints a lot does in the end."""
    done = tmp_path / "done"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(done)], **streams)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()  # the reader has gone
    status = process.wait(timeout=60)
    return status, done.exists() and done.read_text()


def test_closed_pipes_do_not_end_a_process(tmp_path):
    assert run(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) == (0, "done")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_log_does_not_end_a_process(tmp_path, unbuffered):
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        status, text = run(tmp_path, stdout=full, stderr=full, env=environment)
    assert text == "done"
    assert status == 0


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_from_the_start_get_none_of_the_run_s_files(tmp_path, closed):
    done = tmp_path / "done"
    command = f"exec '{sys.executable}' -c '{RUN}' '{done}' {closed}"
    assert subprocess.run(["bash", "-c", command], check=False, timeout=60).returncode == 0
    assert done.read_text() == "done"
