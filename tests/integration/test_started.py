"""However a run is started, its ranks meet in one world, or each says what is wrong and ends."""

import json
import shutil
import socket
import subprocess
import sys

import pytest

from tests.helpers import runs
from tests.helpers.ranks import Rank, environment, start_ranks
from trainer.machine.ranks import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def short(data, tmp_path):
    """A run of two steps: its folder and its recipe."""
    tree = runs.recipe(data, tmp_path / "run", logging={"tensorboard": False}, stop_after=2 * 8 * 32)
    tree["validation"] = {"every_tokens": 10**9}
    return tmp_path / "run", str(runs.write(tree, tmp_path / "r.yaml"))


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
ACCELERATE = (
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
)


@pytest.mark.parametrize("words", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_other_launchers_start_the_ranks_of_one_world(short, words):
    """`--multi_gpu` makes accelerate start its processes as torchrun does; these compute on the CPU."""
    run, recipe = short
    done = subprocess.run(
        [sys.executable, *words, str(free_port()), str(runs.SCRIPT), recipe],
        env=runs.environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line)["world_size"] for line in (run / "lineage.jsonl").open()] == [2]
    assert runs.last_step(run) == 2


def open_mpi(rank, size):
    names = {"RANK": rank, "LOCAL_RANK": rank, "SIZE": size, "LOCAL_SIZE": size}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()}


def mpich(rank, size):
    names = {"PMI_RANK": rank, "PMI_SIZE": size, "MPI_LOCALRANKID": rank, "MPI_LOCALNRANKS": size}
    return {name: str(value) for name, value in names.items()}


@pytest.mark.parametrize("launcher", [open_mpi, mpich])
def test_the_processes_of_an_mpi_are_the_ranks_of_one_world(short, tmp_path, launcher):
    run, recipe = short
    job = {"PMIX_NAMESPACE": str(tmp_path)}
    ranks = [Rank(tmp_path / f"{rank}.log", recipe, **launcher(rank, 2), **job) for rank in (0, 1)]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said()[-3000:]
    assert [json.loads(line)["world_size"] for line in (run / "lineage.jsonl").open()] == [2]
    assert runs.last_step(run) == 2


def test_a_shell_in_a_slurm_allocation_and_a_container_without_slurm_s_commands_train_alone(short, tmp_path):
    run, recipe = short
    step = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NODELIST": "nowhere[1-4]"}
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", **step}
    rank = Rank(tmp_path / "log", "--local-rank=0", recipe, **slurm)
    assert rank.wait() == 0, rank.said()[-3000:]
    assert [json.loads(line)["world_size"] for line in (run / "lineage.jsonl").open()] == [1]


def test_a_port_in_use_is_one_line_and_a_requeue(short, tmp_path):
    _, recipe = short
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        rank = Rank(tmp_path / "log", recipe, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", **meeting)
        assert rank.wait() == 75
    (line,) = [line for line in rank.said().splitlines() if "is in use by another process" in line]
    assert line.startswith(f"rewarm: MASTER_PORT: 127.0.0.1:{port} is in use by another process")
    assert "Traceback" not in rank.said()


def test_every_failing_start_ends_with_its_exit_code_and_not_with_an_abort(short, tmp_path):
    run, recipe = short
    assert Rank(tmp_path / "log", recipe).wait() == 0
    file = next(run.glob("checkpoints/*/rank-*"))
    content = bytearray(file.read_bytes())
    content[-8] ^= 255
    file.write_bytes(content)
    shutil.copytree(run, tmp_path / "damaged")
    for _ in range(3):
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "damaged", run)
        ranks = start_ranks(tmp_path, 2, recipe, "stop_after=null")
        assert {rank.wait() for rank in ranks} == {2}, ranks[0].said()[-3000:]
        assert "no checkpoint is good" in ranks[0].said()
        assert "terminate called" not in ranks[0].said() + ranks[1].said()


def test_a_mistake_in_the_recipe_is_told_before_torch_is_imported(short):
    _, recipe = short
    script = (
        "import sys; from trainer.cli.main import main; status = main(sys.argv[1:]); "
        "print(status, sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    for command in ("train", "plan"):
        done = subprocess.run(
            [sys.executable, "-c", script, command, recipe, "seq_lenn=3"],
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "2 []\n", done.stderr
        assert "seq_lenn: is not a known field; did you mean 'seq_len'?" in done.stderr
