"""A preparation that is killed again and again ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokenization.errors import UserError
from tokenization.shards.store import find_parts, open_tokens, verify_shard
from tokenization.vocabulary import train

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from tokenization.prepare import prepare
from tokenization.tokenizer import encoder, engines
encoder.long_lines = lambda: []
prepare.PART_BYTES = 400_000
options = {"workers": 2, "validation": 0.1, "dedup": True, "progress": False}
prepare.prepare([sys.argv[1]], sys.argv[2], sys.argv[3], **options)
"""
DEADLY = """
import os
real, parent = engines.GigatokenEngine.encode, os.getpid()
def encode(self, texts):
    if os.getpid() != parent:
        os.kill(os.getpid(), 9)
    return real(self, texts)
engines.GigatokenEngine.encode = encode
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(7)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "中国", "人民", "法律", "规定"]
    lines = [" ".join(draw.choices(words, k=draw.randrange(1, 30))) for _ in range(30000)]
    for file in range(3):
        with open(folder / f"{file}.jsonl", "w") as out:
            for line in lines[file * 10000 : (file + 1) * 10000]:
                out.write(json.dumps({"text": line}) + "\n")
    (folder / "text.txt").write_text("\n".join(lines[:500]))
    train.train_vocabulary([folder / "text.txt"], 340, folder / "tokenizer")
    (folder / "text.txt").unlink()
    (folder / "tokenizer").rename(folder.parent / "tokenizer-of-kill")
    return folder


def start(corpus, out):
    arguments = [
        sys.executable,
        "-c",
        PROGRAM,
        str(corpus),
        str(corpus.parent / "tokenizer-of-kill"),
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(arguments, env=environment)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if "prepared" not in path.name}


def test_killed_at_any_moment(corpus, tmp_path):
    assert start(corpus, tmp_path / "whole" / "a").wait() == 0
    assert len(find_parts(tmp_path / "whole" / "a")) > 3
    draw = random.Random(3)
    for attempt in range(40):
        process = start(corpus, tmp_path / "killed" / "a")
        try:
            # the first attempts die early, while modules load, later ones further on
            code = process.wait(0.3 + draw.random() * 0.08 * attempt)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            code = None
        try:
            store = open_tokens(tmp_path / "killed" / "a")
        except UserError:
            assert code is None
        else:
            assert store.tokens == open_tokens(tmp_path / "whole" / "a").tokens
        if code == 0:
            break
    else:
        assert start(corpus, tmp_path / "killed" / "a").wait() == 0
    assert attempt > 1
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    for name in ("a", "a-validation"):
        verify_shard(tmp_path / "killed" / name)


def test_workers_end_with_the_process_that_started_them(corpus, tmp_path):
    process = start(corpus, tmp_path / "a")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.parent.exists():
        process.kill()
        pytest.skip("needs /proc")
    pids: list[str] = []
    deadline = time.monotonic() + 60
    while len(pids) < 2 and time.monotonic() < deadline and process.poll() is None:
        pids = children.read_text().split()
    process.kill()
    process.wait()
    assert len(pids) >= 2
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.2)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_killed_worker_is_an_infrastructure_error(corpus, tmp_path):
    program = PROGRAM.replace("options =", f"{DEADLY}options =")
    arguments = [sys.executable, "-c", program, str(corpus), str(corpus.parent / "tokenizer-of-kill")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([*arguments, str(tmp_path / "a")], env=environment, capture_output=True, text=True)
    assert "InfrastructureError: a worker was killed" in ended.stderr
    with pytest.raises(UserError):
        open_tokens(tmp_path / "a")
