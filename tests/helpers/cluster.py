"""A real Slurm of two nodes on this host, for as long as a test takes."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

from tests.helpers import runs

DAEMONS = ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")

CONFIGURATION = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=10
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_setup_env_fail,sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
FirstJobId={ports[0]}
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10
"""

SLOW_DISK = """
import os, pathlib, time

fsync, seconds = os.fsync, pathlib.Path(os.environ["SLOW_DISK"])


def slow(descriptor):
    try:
        time.sleep(float(seconds.read_text()))
    except (OSError, ValueError):
        pass
    fsync(descriptor)


os.fsync = slow
"""
"""Makes saves slow, so that a tiny run lasts; Python imports a module of the name `sitecustomize` first."""


def missing() -> list[str]:
    """The commands that are not installed here."""
    return [command for command in DAEMONS if shutil.which(command) is None]


class Cluster:
    """Two nodes and a controller; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "n1", "n2"):
            (folder / name).mkdir(parents=True)
        ports = [runs.free_port() for _ in range(3)]
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                folder=folder,
                ports=ports,
                cpus=os.cpu_count(),
            )
        )
        (folder / "slow").mkdir()
        (folder / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
        self._slow = folder / "seconds"
        # The nodes' names are no hosts', so that the first rank's address has to be told.
        self.environment = {
            **runs.environment(),
            "SLURM_CONF": str(configuration),
            "MASTER_ADDR": "127.0.0.1",
            "PYTHONPATH": f"{folder / 'slow'}:{runs.ROOT}",
            "SLOW_DISK": str(self._slow),
        }
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        self._start("slurmctld", "-i")
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%t", "-p", "low").split() == ["idle"], 60)
        return self

    def _start(self, *command: str) -> None:
        """Start a daemon; it is known by its last word."""
        with open(self.folder / f"{'-'.join(command)}.out", "a") as log:
            self._daemons[command[-1]] = subprocess.Popen(
                [command[0], "-D", *command[1:]], env=self.environment, stdout=log, stderr=log
            )

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start("slurmd", "-N", node)

    def lose_node(self, node: str) -> None:
        """Kill all that runs on a node, as a power cut does: nobody tells the controller."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        tasks = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = process.environ()
                of_node = told.get("SLURMD_NODENAME") == node
                if of_node and told.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    tasks.append(process)
        managers = {task.parent() for task in tasks if task.parent() and "slurmstepd" in task.parent().name()}
        for process in [*managers, *tasks]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    @contextlib.contextmanager
    def slow_disk(self, seconds: float):
        """Make each sync of a job take longer while the block runs."""
        self._slow.write_text(str(seconds))
        try:
            yield
        finally:
            self._slow.unlink()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.ask("scancel", "--user", getpass.getuser())
            self.wait_for(lambda: not self.ask("squeue", "-h"), 30)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def ask(self, *command: str) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(
            command, env=self.environment, cwd=runs.ROOT, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        """The number of a new job on both nodes, a task on each."""
        size = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--mem=0")
        log = f"--output={self.folder}/job-%j.log"
        return self.ask("sbatch", "--parsable", *size, "--partition=low", log, *arguments)

    def start_now(self, job: str) -> None:
        """Starts a requeued job without the time that Slurm lets it wait, which is `cred_expire`.

        Nodes know the credentials of the start before by its second: one within the same second is refused.
        """
        time.sleep(2)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, …"""
        told = dict(
            pair.partition("=")[::2] for pair in self.ask("scontrol", "-o", "show", "job", job).split()
        )
        return told.get("JobState", "")

    def restarts(self, job: str) -> int:
        """How often a job was put back into the queue."""
        told = self.ask("scontrol", "-o", "show", "job", job)
        return int(told.partition("Restarts=")[2].split()[0])

    def wait_for_job(self, job: str, happened, patience_s: float = 240) -> None:
        """Until `happened()`, while a job is queued or runs."""

        def happened_or_failed() -> bool:
            assert self.state(job) not in ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"), self.ask(
                "scontrol", "show", "job", job
            )
            return happened()

        self.wait_for(happened_or_failed, patience_s)

    def log(self, job: str) -> str:
        """What a job has printed."""
        return (self.folder / f"job-{job}.log").read_text(errors="replace")

    def wait_for(self, happened, patience_s: float) -> None:
        """Until `happened()`."""
        deadline = time.monotonic() + patience_s
        while not happened():
            assert time.monotonic() < deadline, self.ask("scontrol", "show", "job") or self.ask("sinfo")
            time.sleep(0.2)
