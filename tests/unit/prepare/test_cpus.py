"""How many processes by default: as many as this one may have CPUs."""

import os

import pytest

from tokenization.prepare.cpus import allowed_cpus

V2 = "0::/slurm/job_7\n"
V1 = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n"


def machine(root, groups, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        (V2, {}, 16),
        (V2, {"slurm/job_7/cpu.max": "max 100000\n"}, 16),
        (V2, {"slurm/job_7/cpu.max": "400000 100000\n"}, 4),
        (V2, {"slurm/cpu.max": "250000 100000\n", "slurm/job_7/cpu.max": "max 100000\n"}, 3),
        (V2, {"cpu.max": "50000 100000\n"}, 1),  # what a container sees of its own group
        (V2, {"slurm/job_7/cpu.max": "9900000 100000\n"}, 16),
        (V2, {"slurm/job_7/cpu.max": "what\n"}, 16),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ("", {}, 16),
    ],
)
def test_the_quota_of_a_group_or_of_one_above_it_holds(tmp_path, monkeypatch, groups, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert allowed_cpus(machine(tmp_path, groups, files)) == cpus


def test_the_cpus_that_a_process_is_bound_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert allowed_cpus(tmp_path) == 2  # where there is no /proc either


def test_data_prepare_asks_for_them(tmp_path, monkeypatch):
    from tokenization.prepare import cpus, prepare
    from trainer.cli.main import main

    given = {}

    class Started(Exception):
        pass

    def start(*inputs, **options):
        given.update(options)
        raise Started

    monkeypatch.setattr(cpus, "allowed_cpus", lambda: 3)
    monkeypatch.setattr(prepare, "prepare", start)
    for words, workers in (([], 3), (["--workers", "1"], 1), (["--workers", "0"], 0)):
        with pytest.raises(Started):
            main(["data", "prepare", "--input", "x", "--tokenizer", "y", "--out", "z", *words])
        assert given["workers"] == workers
