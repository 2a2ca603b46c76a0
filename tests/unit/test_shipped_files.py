"""Everything that ships is read by what will read it: recipes, DeepSpeed presets, scripts."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tokenization.errors import ExitCode, UserError, UserErrors
from trainer.engine.ds_config import check_saved, complete, read_preset, stage
from trainer.engine.layout import Layout
from trainer.machine.signals import STOPS
from trainer.machine.slurm import shipped_scripts
from trainer.plan.ahead import Ahead
from trainer.plan.make import make_plan
from trainer.recipe.load import dump_recipe, load_recipe, parse_recipe
from trainer.scheduler.curves import Curve

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
PRESETS = sorted((ROOT / "ds_configs").glob("*.json"))
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/slurm/*.sbatch"), ROOT / ".ci" / "run"])


MODEL = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
"""LLaMA-2 7B's."""


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


def test_what_ships_is_what_the_house_promises():
    assert {path.stem for path in RECIPES} >= {
        "quickstart-base",
        "quickstart",
        "quickstart-unextended",
        "llama2-7b-zh",
        "llama2-13b-zh",
        "llama2-70b-zh",
        "pythia-410m-slimpajama",
    }
    assert {path.stem for path in PRESETS} == {
        "zero0",
        "zero1",
        "zero2",
        "zero3",
        "zero2-offload",
        "zero3-offload",
        "zero3-nvme",
        "zeropp",
    }


@by_name(RECIPES)
def test_every_recipe_is_read_and_its_resolved_copy_is_the_same_recipe(path):
    recipe = load_recipe(path)
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert (ROOT / recipe.deepspeed).is_file()
    assert {name.partition("/")[0] for name in recipe.validation.paths} == {"upstream", "downstream"}
    assert {source.role for source in recipe.sources.values()} >= {"new"}


@by_name(RECIPES)
def test_every_recipe_plans_before_anything_is_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    recipe = load_recipe(path)
    gpus = 64 if "70b" in path.stem else 8
    plan = make_plan(recipe, gpus, ahead=Ahead(available=72 * 2**30))
    assert plan.decision.kind == "start"
    if "quickstart" not in path.stem:  # whose base is not a well-known model
        assert plan.memory.largest_micro_batch(plan.available) >= 1


@by_name(RECIPES)
def test_every_recipe_says_why_before_it_says_what(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[1].startswith("# ")
    assert "quickstart" in path.stem or "arXiv" in path.read_text(encoding="utf-8")


def test_the_recipe_that_goes_on_from_another_names_its_last_checkpoint():
    recipes = {path.stem: load_recipe(path) for path in RECIPES}
    before = recipes["llama2-13b-zh"]
    steps = sum(before.phase_samples(phase) // before.batch_of(phase) for phase in (0, 1))
    base = recipes["llama2-13b-zh-better-text"].model.base
    assert base == f"{before.directory}/checkpoints/step-{steps:08d}"


def test_the_other_sizes_without_an_extension_are_the_overrides_that_the_recipe_names():
    path = ROOT / "launch" / "recipes" / "llama2-7b-zh-own-vocabulary.yaml"
    lines = [line.removeprefix("#   ") for line in path.read_text(encoding="utf-8").splitlines()]
    found = [load_recipe(path, line.split()) for line in lines if line.startswith("name=")]
    assert [recipe.name[:10] for recipe in found] == ["llama2-13b", "llama2-70b"]
    assert found[1].phases[0].schedule.max_lr == 5e-5


@by_name(RECIPES)
def test_every_recipe_takes_whole_steps_with_a_curve_from_nothing_over_max_lr(path):
    recipe = load_recipe(path)
    for number, phase in enumerate(recipe.phases):
        curve = Curve(phase.schedule, phase.tokens)
        steps = recipe.phase_samples(number) // recipe.global_batch_size
        rates = [float(curve(tokens)) for tokens in range(0, phase.tokens, -(-phase.tokens // 2000))]
        top, schedule = phase.schedule.max_lr, phase.schedule
        assert rates[0] == (0 if schedule.warmup.amount else top)
        assert max(rates) == pytest.approx(top, rel=1e-2)
        end = {"constant": top, "infinite": rates[-1]}.get(schedule.kind, schedule.min_lr)
        assert rates[-1] == pytest.approx(end, rel=0.02, abs=top / 100)
        assert steps > 100
        assert recipe.global_batch_size % 8 == 0


def test_guptas_setting_has_their_steps():
    recipe = load_recipe(ROOT / "launch" / "recipes" / "pythia-410m-slimpajama.yaml")
    assert recipe.tokens_per_step * 131_296 == recipe.phases[0].tokens


@pytest.mark.parametrize(
    "overrides",
    [
        ["phases.0.schedule.max_lr=6e-4", "phases.0.schedule.min_lr=6e-5", "phases.0.schedule.warmup=0.5%"],
        ["phases.0.schedule={kind: constant, max_lr: 3e-5, warmup: 0%}"],
    ],
)
def test_the_overrides_that_the_pythia_recipe_names_are_read(overrides):
    load_recipe(ROOT / "launch" / "recipes" / "pythia-410m-slimpajama.yaml", overrides)


def test_the_recipe_without_an_extended_vocabulary_differs_in_model_and_shards_alone():
    extended, plain = (
        load_recipe(ROOT / "launch" / "recipes" / f"{name}.yaml")
        for name in ("quickstart", "quickstart-unextended")
    )
    own = {"name", "run_dir", "model", "sources", "validation"}
    assert plain.model_dump(exclude=own) == extended.model_dump(exclude=own)
    assert list(plain.sources) == list(extended.sources)
    assert plain.validation.max_tokens == extended.validation.max_tokens


def test_the_arm_without_replay_is_an_override_of_the_quickstart():
    arm = ["name=quickstart-replay-0", "run_dir=runs/quickstart/replay-0", "phases.0.mixture.replay_ratio=0"]
    with_replay = load_recipe(ROOT / "launch" / "recipes" / "quickstart.yaml")
    without = load_recipe(ROOT / "launch" / "recipes" / "quickstart.yaml", arm)
    assert without.phases[0].mixture[0].replay_ratio == 0
    assert with_replay.phases[0].mixture[0].replay_ratio == pytest.approx(0.25)
    assert without.phases[0].schedule == with_replay.phases[0].schedule


@pytest.mark.parametrize("size", ["7b", "13b", "70b"])
def test_the_recipes_validate_on_what_the_readmes_commands_hold_out(size):
    walk = (ROOT / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"rewarm data prepare .* --out (\S+) --validation", walk))
    validation = load_recipe(ROOT / "launch" / "recipes" / f"llama2-{size}-zh.yaml").validation
    assert {validation.upstream, validation.downstream} == {f"{prefix}-validation" for prefix in made}


def test_the_arms_that_the_study_script_shows_differ_in_every_phase():
    script = (ROOT / "launch" / "slurm" / "study.sbatch").read_text(encoding="utf-8")
    arms = [line.removeprefix("#   ").split() for line in script.splitlines() if line.startswith("#   name=")]
    recipe = ROOT / "launch" / "recipes" / "llama2-7b-zh.yaml"
    shares = [
        [float(phase.mixture[0].replay_ratio) for phase in load_recipe(recipe, arm).phases] for arm in arms
    ]
    assert shares == [[0, 0], [0.05, 0.05], [0.25, 0.25]]


@by_name(PRESETS)
def test_every_preset_holds_only_how_memory_is_split(path):
    assert set(read_preset(path)) <= {"zero_optimization", "aio"}


@by_name(PRESETS)
def test_deepspeeds_own_parser_takes_every_preset_as_the_trainer_completes_it(path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    runtime = pytest.importorskip("deepspeed.runtime.config")
    recipe = load_recipe(ROOT / "launch" / "recipes" / "quickstart.yaml")
    if path.stem != "zero0":
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bf16"})})
    written = complete(read_preset(path), recipe, Layout(1, 4, 2), MODEL)

    read = runtime.DeepSpeedConfig(json.loads(json.dumps(written)))

    assert read.zero_config.stage == stage(written)
    assert (read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (4, 2)
    offload = read.zero_config.offload_optimizer
    assert (str(offload.device) if offload else "none") == {
        "zero2-offload": "cpu",
        "zero3-offload": "cpu",
        "zero3-nvme": "nvme",
    }.get(path.stem, "none")
    if "aio" in written:
        assert read.aio_config.items() >= written["aio"].items()
    # Every key is one that DeepSpeed knows: it forbids others, and this is the proof that it still does.
    zero = {**written["zero_optimization"], "no_such_key": 1}
    with pytest.raises(ValueError, match="no_such_key"):
        runtime.DeepSpeedConfig({**written, "zero_optimization": zero})


def test_a_preset_with_a_learning_rate_is_refused(tmp_path):
    path = tmp_path / "zero2.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"params": {"lr": 1e-4}}}')
    with pytest.raises(UserError, match="optimizer"):
        read_preset(path)


@by_name(PRESETS)
def test_every_preset_keeps_its_state_where_checkpoints_reach(path):
    recipe = load_recipe(ROOT / "launch" / "recipes" / "quickstart.yaml")
    check_saved(read_preset(path), recipe.model_copy(update={"deepspeed": str(path)}))


@pytest.fixture
def machine(monkeypatch):
    """A CPU without fp16, and a choice of the tools that are installed."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    engine = pytest.importorskip("trainer.engine.requirements")

    def lacks(*tools):
        monkeypatch.setattr(engine.shutil, "which", lambda tool: None if tool in tools else f"/bin/{tool}")
        monkeypatch.setattr(engine.get_accelerator(), "is_fp16_supported", lambda: False)
        return engine.check_machine

    return lacks


@pytest.mark.parametrize("tool", ["c++", "ninja"])
def test_offload_without_a_compiler_is_one_clear_line(machine, tool, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    offload = read_preset(ROOT / "ds_configs" / "zero2-offload.json")
    machine()(offload, "bf16")
    machine(tool)(read_preset(ROOT / "ds_configs" / "zero2.json"), "bf16")
    with pytest.raises(UserError) as told:
        machine(tool)(offload, "bf16")
    assert "\n" not in str(told.value)
    assert f"and {tool} is not installed; put g++ and ninja on the PATH, or use a preset without" in str(
        told.value
    )


def test_what_a_cpu_cannot_do_is_told_at_once(machine):
    with pytest.raises(UserErrors) as told:
        machine()(read_preset(ROOT / "ds_configs" / "zeropp.json"), "fp16")
    fields = ("model.dtype", "zero_optimization.zero_quantized_weights")
    for problem, field in zip(told.value.problems, fields, strict=False):
        assert str(problem).startswith(field)
    assert len(told.value.problems) == 3


@by_name(SCRIPTS)
def test_every_script_is_bash(path):
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


# ------------------------------------------------------------------------------------------ batch scripts


def test_the_shipped_scripts_are_the_text_that_rewarm_submit_writes():
    for name, text in shipped_scripts().items():
        assert (ROOT / "launch" / "slurm" / name).read_text(encoding="utf-8") == text, name


@pytest.fixture
def cluster(tmp_path):
    """A folder like the repository's root, where `srun`, `scontrol` and `rewarm` note how they are called."""
    tools = (
        ("bin/srun", "${SRUN_STATUS:-0}"),
        ("bin/scontrol", "0"),
        (".venv/bin/rewarm", "${PLAN_STATUS:-0}"),
    )
    for name, status in tools:
        tool = tmp_path / name
        tool.parent.mkdir(exist_ok=True, parents=True)
        tool.write_text(f'#!/usr/bin/env bash\necho "{tool.name} $*" >>"{tmp_path}/calls"\nexit {status}\n')
        tool.chmod(0o755)
    (tmp_path / "launch" / "slurm").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "slurm" / "run.sh", tmp_path / "launch" / "slurm")

    slurm = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}

    def submit(script, *arguments, **environment):
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / "slurm" / script), *arguments],
            cwd=tmp_path,
            env=slurm | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return submit


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),  # the user's mistake: running it again changes nothing
        (75, 0, True),  # stopped by a signal after its save
        (75, 50, False),
        (130, 0, False),  # Ctrl-C
    ],
)
def test_a_run_is_requeued_when_that_helps(cluster, status, restarts, requeued):
    code, calls = cluster(
        "train.sbatch", "recipe.yaml", "seed=1", SRUN_STATUS=str(status), SLURM_RESTART_COUNT=str(restarts)
    )
    assert code == status
    assert calls == [
        "rewarm plan recipe.yaml seed=1 --gpus 16 --strict",
        "srun --kill-on-bad-exit=1 .venv/bin/python launch/train.py recipe.yaml seed=1",
        *(["scontrol requeue 7"] if requeued else []),
    ]


@pytest.mark.parametrize(("script", "more"), [("train.sbatch", ()), ("study.sbatch", ("arms.txt",))])
def test_what_the_plan_finds_wrong_costs_no_gpu_time(cluster, tmp_path, script, more):
    (tmp_path / "arms.txt").write_text("name=a\n")
    code, calls = cluster(script, "r.yaml", *more, PLAN_STATUS="2", SLURM_ARRAY_TASK_ID="1")
    assert code == 2
    assert [call.split()[0] for call in calls] == ["rewarm"]


@pytest.mark.parametrize(
    ("noted", "highest", "status"),
    [
        ("75", 137, 75),  # a rank's disk failed, and the others were killed in the middle of a step
        ("2\n2", 75, 2),  # the recipe was wrong, and a rank was ended while it loaded
        ("75\n2", 143, 2),
    ],
)
def test_the_rank_that_failed_first_says_what_it_means(cluster, tmp_path, noted, highest, status):
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f'#!/usr/bin/env bash\nprintf "{noted}\n" >>"$REWARM_STATUS"\nexit {highest}\n')
    for _ in range(2):  # what one start noted is not read by the next
        code, calls = cluster("train.sbatch", "recipe.yaml")
        assert code == status
        assert calls[1:] == (["scontrol requeue 7"] if status == 75 else [])
    assert list(tmp_path.glob(".rewarm-*")) == []


@pytest.mark.parametrize("command", ["SRUN_STATUS", "PLAN_STATUS"])
@pytest.mark.parametrize("number", [number for number, code in STOPS.items() if code is ExitCode.REQUEUE])
def test_a_stop_before_python_listens_means_what_it_means_a_moment_later(cluster, command, number):
    code, calls = cluster("train.sbatch", "recipe.yaml", **{command: str(128 + number)})
    assert (code, calls[-1]) == (75, "scontrol requeue 7")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_rank_that_the_machine_ended_is_not_started_again(cluster, number):
    """Too little memory, or a defect: the next start would meet it, too."""
    code, calls = cluster("train.sbatch", "recipe.yaml", SRUN_STATUS=str(128 + number))
    assert code == 128 + number
    assert "scontrol requeue 7" not in calls


def test_an_array_task_prepares_its_part(cluster):
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_CPUS_PER_TASK": "16"}
    _, calls = cluster("prepare.sbatch", "--out", "data/zh", **slurm)
    assert calls == ["srun .venv/bin/rewarm data prepare --out data/zh --workers 16 --part 3/8"]
    _, calls = cluster("prepare.sbatch", "--out", "data/zh", **slurm, REWARM_PARTS="32")
    assert calls[0].endswith("--part 3/32")


def test_an_array_task_trains_its_arm(cluster, tmp_path):
    (tmp_path / "arms.txt").write_text("name=a seed=1\nname=b seed=2\n")
    slurm = {"SLURM_ARRAY_JOB_ID": "9", "SRUN_STATUS": "75"}
    code, calls = cluster("study.sbatch", "r.yaml", "arms.txt", **slurm, SLURM_ARRAY_TASK_ID="2")
    assert code == 75
    assert calls == [
        "rewarm plan r.yaml name=b seed=2 --gpus 16 --strict",
        "srun --kill-on-bad-exit=1 .venv/bin/python launch/train.py r.yaml name=b seed=2",
        "scontrol requeue 9_2",
    ]
    code, calls = cluster("study.sbatch", "r.yaml", "arms.txt", **slurm, SLURM_ARRAY_TASK_ID="3")
    assert (code, calls) == (2, [])
