"""A rank stops when the launcher that started it has gone."""

import signal
import subprocess
import sys

import pytest

from trainer.machine.launcher import is_launcher, signal_ranks

RANK = (
    "from trainer.machine.launcher import stop_with_launcher; from trainer.machine.signals import Signals\n"
    "import time\n"
    "with Signals() as signals:\n"
    "    stop_with_launcher(0.05); print('up', flush=True); deadline = time.monotonic() + {}\n"
    "    while not signals.stop_requested and time.monotonic() < deadline: time.sleep(0.05)\n"
    "    print(signals.received, flush=True)\n"
)
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"


@pytest.mark.parametrize(
    ("command", "launcher"),
    [
        ("/env/bin/python3.11 /env/bin/deepspeed --num_gpus 2 launch/train.py r.yaml", True),
        ("/env/bin/python -u -m deepspeed.launcher.launch --world_info=x launch/train.py", True),
        ("/env/bin/python /env/bin/torchrun --nproc-per-node 2 launch/train.py", True),
        ("python -m torch.distributed.run launch/train.py", True),
        ("/env/bin/python /env/bin/accelerate launch train.py", True),
        ("mpirun -n 4 rewarm train r.yaml", True),
        ("/usr/lib/x86_64/mpiexec.hydra -n 2 rewarm", True),
        ("slurmstepd: [7.0]", True),
        ("bash deepspeed-runs/start.sh", False),
        ("bash", False),
        ("/env/bin/python -m pytest tests/deepspeed", False),
        ("tmux new deepspeed", False),
        ("", False),
    ],
)
def test_launchers_are_known_by_their_programs(command, launcher):
    assert is_launcher(command.split()) == launcher


@pytest.mark.parametrize(("name", "received"), [("deepspeed", "15"), ("start", "None")])
def test_a_rank_stops_with_its_launcher_but_not_with_the_shell_it_was_started_from(tmp_path, name, received):
    program = tmp_path / name
    program.write_text(LAUNCHER.format(rank=RANK.format(60 if received == "15" else 3)))
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.kill()
    assert process.stdout.readline().strip() in (received, f"Signals.SIG{'TERM' if received == '15' else ''}")
    process.wait()


def test_a_signal_reaches_the_ranks_below_a_launcher_that_passes_none_on(tmp_path):
    program = tmp_path / "deepspeed"
    program.write_text(LAUNCHER.format(rank=RANK.format(60)))
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    signal_ranks(process.pid, signal.SIGUSR1)
    assert process.stdout.readline().strip() in ("10", "Signals.SIGUSR1")
    assert process.wait(30) == 0
