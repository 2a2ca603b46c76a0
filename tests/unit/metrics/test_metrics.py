"""A run's numbers: nothing is rounded, nothing is lost by a kill, a restored step counts once."""

import errno
import io
import json
import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.errors import UserError
from trainer.metrics.jsonl import attempts, done_twice, read_metrics
from trainer.metrics.log import Metrics
from trainer.metrics.progress import Progress, short
from trainer.metrics.services import check_services
from trainer.metrics.throughput import Throughput
from trainer.recipe.schema import Logging

QUIET = Logging(tensorboard=False)


class Clock:
    """A clock that goes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def train(run_dir, steps, *, restored_step=None, loss=lambda step: 1.0 / (step + 3), logging=QUIET):
    """One attempt: a loss per step, 10 tokens a step."""
    metrics = Metrics(
        run_dir,
        logging,
        rank=0,
        name="run",
        total_tokens=1000,
        restored_step=restored_step,
        stream=io.StringIO(),
    )
    for step in steps:
        metrics.log(step, step * 10, {"loss/train": loss(step)})
    metrics.close()


def test_every_digit_survives(tmp_path):
    train(tmp_path, [1, 2], loss=lambda step: 1.0 if step == 1 else math.nextafter(1.0, 2.0))
    first, second = read_metrics(tmp_path)
    assert first["loss/train"] == 1.0
    assert second["loss/train"] == math.nextafter(1.0, 2.0)
    assert (first["step"], first["tokens"], first["attempt"]) == (1, 10, 1)


@given(value=st.floats(allow_nan=False))
def test_any_number_comes_back_equal(tmp_path_factory, value):
    run_dir = tmp_path_factory.mktemp("run")
    train(run_dir, [0], loss=lambda _: value)
    assert read_metrics(run_dir)[0]["loss/train"] == value


def test_numbers_of_numpy_and_torch_and_non_finite_ones_are_strict_json(tmp_path):
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    values = {
        "a": numpy.float32(0.1),
        "b": torch.tensor(0.5),
        "c": math.nan,
        "d": -math.inf,
        "e": numpy.int64(7),
    }
    metrics = Metrics(tmp_path, QUIET, rank=0, name="run", total_tokens=10, stream=io.StringIO())
    metrics.log(1, 10, values)
    metrics.close()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    (record,) = read_metrics(tmp_path)
    assert record["a"] == float(numpy.float32(0.1))
    assert record["b"] == 0.5
    assert math.isnan(record["c"])
    assert record["d"] == -math.inf
    assert record["e"] == 7


def test_what_is_said_of_a_step_adds_up(tmp_path):
    metrics = Metrics(tmp_path, QUIET, rank=0, name="run", total_tokens=100, stream=io.StringIO())
    metrics.log(5, 50, {"loss/train": 3.0})
    metrics.log(5, 50, {"eval/upstream/bits_per_byte": 1.5})
    metrics.close()
    (record,) = read_metrics(tmp_path)
    assert (record["loss/train"], record["eval/upstream/bits_per_byte"]) == (3.0, 1.5)


def test_steps_after_the_restored_one_count_as_they_were_done_again(tmp_path):
    train(tmp_path, range(1, 9), loss=lambda step: step)  # saved at 5, killed after 8
    train(tmp_path, range(6, 8), loss=lambda step: -step, restored_step=5)  # killed after 7
    assert [record["loss/train"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, -6, -7]
    assert [(a["loss/train"], b["loss/train"]) for a, b in done_twice(tmp_path)] == [(6, -6), (7, -7)]
    first, second = attempts(tmp_path)
    assert [record["step"] for record in first.records] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (second.number, second.restored_step) == (2, 5)
    assert first.run_id == second.run_id


def test_a_start_afresh_in_the_same_directory_undoes_everything(tmp_path):
    train(tmp_path, [0, 1, 2])
    train(tmp_path, [0, 1], loss=lambda step: 9.0)
    assert [record["loss/train"] for record in read_metrics(tmp_path)] == [9.0, 9.0]
    assert len(done_twice(tmp_path)) == 2


@given(data=st.data())
def test_however_often_a_run_is_killed_its_history_is_the_uninterrupted_one(tmp_path_factory, data):
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    train(whole, range(1, 21))
    restored = None
    for _ in range(data.draw(st.integers(0, 4))):
        first = (restored or 0) + 1
        done = data.draw(st.integers(first, 20))
        train(broken, range(first, done + 1), restored_step=restored)
        restored = data.draw(st.integers(1, min(done, 19)))
    train(broken, range((restored or 0) + 1, 21), restored_step=restored)
    assert [(r["step"], r["loss/train"]) for r in read_metrics(broken)] == [
        (r["step"], r["loss/train"]) for r in read_metrics(whole)
    ]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_torn_by_a_kill_spoils_nothing(tmp_path, cut):
    train(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    train(tmp_path, [2, 3], restored_step=1)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_no_run_and_a_damaged_line_are_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read .*run directory"):
        read_metrics(tmp_path)
    train(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], lines[1][:-3], *lines[2:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: is not a record"):
        read_metrics(tmp_path)


def test_other_ranks_write_nothing(tmp_path):
    metrics = Metrics(tmp_path, Logging(), rank=1, name="run", total_tokens=10)
    metrics.log(1, 1, {"loss/train": 1.0})
    metrics.say("nothing")
    metrics.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_real_event_files_without_the_undone_steps(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, [1, 2, 3, 4], logging=Logging(), loss=lambda step: step)
    train(tmp_path, [3, 4], logging=Logging(), loss=lambda step: -step, restored_step=2)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [
        (1, 1),
        (2, 2),
        (3, -3),
        (4, -4),
    ]


def test_weights_and_biases_is_told_missing_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(
        UserError, match=r"logging\.wandb_project: 'demo' needs the package wandb; pip install wandb"
    ):
        check_services(Logging(wandb_project="demo"))
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_sees_one_run_over_all_attempts(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def define_metric(self, *_, **__):
            pass

        def log(self, record):
            logged.append(record)

        def finish(self):
            pass

    class Module:
        @staticmethod
        def init(**arguments):
            started.append(arguments)
            return Run()

    monkeypatch.setitem(__import__("sys").modules, "wandb", Module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    logging = Logging(tensorboard=False, wandb_project="demo")
    train(tmp_path, [1, 2], logging=logging)
    train(tmp_path, [2], logging=logging, restored_step=1)
    assert [start["project"] for start in started] == ["demo", "demo"]
    assert started[0]["id"] == started[1]["id"]
    assert [record["step"] for record in logged] == [1, 2, 2]


def test_what_a_full_disk_does_not_take_is_written_when_there_is_room(tmp_path):
    metrics = Metrics(
        tmp_path, Logging(tensorboard=False), rank=0, name="x", total_tokens=100, stream=io.StringIO()
    )
    (truth, *_) = metrics._sinks
    room, disk = [17], truth._file

    def write(data):  # as a file does: a part, and then an error
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = disk.write(data[: room[0]])
        room[0] -= taken
        return taken

    truth._file = SimpleNamespace(write=write)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            metrics.log(step, step * 10, {"loss/train": 1.0})
    room[0] = 10**6
    metrics.log(3, 30, {"loss/train": 1.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------- progress


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


def test_a_terminal_gets_a_bar_with_rate_and_losses():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(1000, 0, stream)
    progress.log(
        {"step": 1, "tokens": 250, "loss/train": 2.5, "lr": 3e-4, "eval/upstream/bits_per_byte": 1.5}
    )
    progress.say("saved step 1")
    progress.close()
    assert "saved step 1\n" in stream.getvalue()
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
def test_three_figures_and_a_unit(number, written):
    assert short(number) == written


# ---------------------------------------------------------------------------------------------- throughput


def test_throughput_leaves_evaluation_out():
    clock = Clock()
    meter = Throughput(flops_per_token=6e9, peak_flops=1e13, clock=clock)
    for _ in range(4):
        clock.now += 0.5
        meter.step(1000, data_wait_s=0.01)
    with meter.paused():
        clock.now += 60
    measured = meter.read()
    assert measured["perf/tokens_per_s"] == pytest.approx(2000)
    assert measured["perf/step_s"] == pytest.approx(0.5)
    assert measured["perf/data_wait_s"] == pytest.approx(0.01)
    assert measured["perf/mfu"] == pytest.approx(2000 * 6e9 / 1e13)
    assert measured["mem/peak_gib"] > 0.01
    clock.now += 1
    meter.step(500)
    assert meter.read()["perf/tokens_per_s"] == pytest.approx(500)


def test_no_mfu_for_an_unknown_device_and_nothing_before_the_first_step():
    clock = Clock()
    meter = Throughput(flops_per_token=6e9, clock=clock)
    assert meter.read() == {}
    clock.now += 1
    meter.step(10)
    assert "perf/mfu" not in meter.read()
