"""What all tests share."""

import logging
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Last, so that a script in the working folder hides no module of the same name: the root is for `launch`.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# nohup, and a shell with its background jobs, ignore these signals, and whatever is started inherits
# that: tests of signals would wait for ever.
for number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline measures the machine and not the code: on a busy one it fails at random. The examples are the
# same at every run, so that a commit is judged and not its luck; --hypothesis-profile=search draws new ones.
settings.register_profile("rewarm", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("rewarm")


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where there is no CUDA device, and import torch only if something is."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def log_lines():
    """What the trainer logs while the test runs, one message each."""
    logger = logging.getLogger("rewarm")
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)
