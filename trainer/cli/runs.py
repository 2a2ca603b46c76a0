"""`rewarm plan`, `train`, `eval`, `export` and `report`: runs, before, while and after they train."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from tokenization.errors import ExitCode, UserError
from trainer.cli.answer import print_answer
from trainer.cli.arguments import (
    RUNS,
    add_command,
    add_overwrite,
    add_recipe,
    gibibytes,
    path_text,
    positive_number,
    prefix_text,
    utilization,
    whole_numbers,
)
from trainer.machine.devices import known_gpu, prefer_expandable_segments, usable_bytes
from trainer.machine.launcher import stop_with_launcher
from trainer.machine.log_lines import logger
from trainer.machine.ranks import World, current_world, note_status
from trainer.machine.signals import exit_on_signal, wait_for_rank0
from trainer.machine.streams import enduring
from trainer.metrics.heartbeat import read_status
from trainer.recipe import load
from trainer.storage.run_directory import find_runs
from trainer.storage.shipped import train_words


def add_runs(commands: Any) -> None:
    """Add the commands about runs."""
    _add_plan(commands)

    train = add_command(commands, "train", train_command, "launch/recipes/llama2-7b-zh.yaml")
    add_recipe(train)
    traced = "trace N steps (default: 3) after five that warm up, into profile/ of the run directory"
    train.add_argument("--profile", nargs="?", type=positive_number, const=3, metavar="N", help=traced)

    example = "runs/x/checkpoints/step-00001000 --data data/en"
    score = add_command(commands, "eval", evaluate_command, example)
    scored = "a model directory, a checkpoint, or a run directory for its newest checkpoint"
    score.add_argument("model", type=path_text, metavar="MODEL|CHECKPOINT", help=scored)
    shards = "token shards, as `rewarm data prepare` writes them"
    score.add_argument("--data", type=prefix_text, nargs="+", default=[], metavar="PREFIX", help=shards)
    window = "tokens of each window of text (default: the run's seq_len, else the model's context up to 4096)"
    score.add_argument("--seq-len", type=positive_number, metavar="N", help=window)
    first = "only the first N tokens of each shard (default: all)"
    score.add_argument("--max-tokens", type=positive_number, metavar="N", help=first)
    base = "another model: what the first has forgotten against it on each shard"
    score.add_argument("--against", type=path_text, metavar="BASE", help=base)
    other = "the same texts as --data, for a BASE with another tokenizer"
    score.add_argument("--against-data", type=prefix_text, nargs="+", metavar="PREFIX", help=other)
    tasks = "tasks for lm-eval's harness (an extra) instead of, or beside, --data"
    score.add_argument("--tasks", metavar="NAME,…", help=tasks)
    files = "folder of task files of your own; then nothing is fetched"
    score.add_argument("--tasks-path", type=path_text, metavar="DIR", help=files)
    limit = "only N examples of each task (default: all)"
    score.add_argument("--limit", type=positive_number, metavar="N", help=limit)

    export = add_command(commands, "export", export_command, "runs/x --out models/llama2-zh")
    newest = "a checkpoint, or a run directory for its newest"
    export.add_argument("checkpoint", type=path_text, metavar="CHECKPOINT", help=newest)
    export.add_argument("--out", type=path_text, required=True, metavar="DIR", help="the new model directory")
    add_overwrite(export)
    stored = "type of the stored weights (default: bf16)"
    export.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16", help=stored)
    averaged = "the averaged weights that model.average keeps, instead of those of the last step"
    export.add_argument("--average", action="store_true", help=averaged)
    size = "most bytes of a file (default: 5e9)"
    export.add_argument("--shard-size", type=positive_number, default="5e9", metavar="BYTES", help=size)

    report = add_command(commands, "report", report_command, "runs/a runs/b --out report.html")
    report.add_argument("runs", type=path_text, nargs="+", metavar="RUN", help=RUNS)
    report.add_argument("--out", type=path_text, required=True, metavar="FILE.html", help="the page")


def _add_plan(commands: Any) -> None:
    plan = add_command(commands, "plan", plan_command, "recipe.yaml --gpus 64 --gpu h100 --shape llama2-7b")
    add_recipe(plan)
    lr_at = "show the learning rate after these tokens of the run, such as 0,1e9 (default: a curve)"
    plan.add_argument("--lr-at", type=whole_numbers, metavar="T,…", help=lr_at)
    ranks = "number of ranks to plan for, one per GPU (default: 1)"
    plan.add_argument(
        "--gpus", "--world-size", dest="world_size", type=positive_number, default=1, metavar="N", help=ranks
    )
    plan.add_argument(
        "--gpu", metavar="NAME", help="the GPU to plan for, such as h100 (default: this machine)"
    )
    memory = "memory of a GPU in GiB, such as 80 (default: that of --gpu)"
    plan.add_argument("--gpu-memory", type=gibibytes, metavar="GIB", help=memory)
    mfu = "model FLOP/s utilization that you expect, such as 40%% (default: 35%%)"
    plan.add_argument("--mfu", type=utilization, metavar="SHARE", help=mfu)
    shape = "sizes of the base while it is not there, such as llama2-7b (default: what its name says)"
    plan.add_argument("--shape", metavar="NAME", help=shape)
    pieces = "pieces of the tokenizer while it is not there, such as 55296 (default: those of the shape)"
    plan.add_argument("--vocab-size", type=positive_number, metavar="N", help=pieces)
    strict = "refuse what is not there yet, as training does"
    plan.add_argument("--strict", action="store_true", help=strict)
    plot = "draw the learning rate and the mixture over the run"
    plan.add_argument("--plot", type=path_text, metavar="FILE.svg", help=plot)


def plan_command(args: argparse.Namespace) -> int:
    """Show what a recipe will do, before it does it."""
    recipe = load.load_recipe(args.recipe, args.overrides)
    name, memory = known_gpu(args.gpu) if args.gpu else (None, None)
    memory = args.gpu_memory or memory
    from trainer.plan.ahead import Ahead, found_elsewhere
    from trainer.plan.make import make_plan
    from trainer.plan.outlook import outlook
    from trainer.plan.render import plan_to_json, render_plan

    if line := found_elsewhere(recipe, args.recipe):
        logger.warning(line)
    available = None if memory is None else usable_bytes(memory * 2**30)
    ahead = Ahead(args.shape, args.vocab_size, available, args.strict)
    plan = make_plan(recipe, args.world_size, ahead=ahead)
    found = outlook(plan, name, args.mfu)
    if args.plot:
        from trainer.report.planned import write_picture

        write_picture(plan, Path(args.plot))
    text = render_plan(plan, found, args.lr_at)
    if plan.decision.kind not in ("refuse", "finished"):
        text += f"\n\ntrain    deepspeed {train_words()} {shlex.join([args.recipe, *args.overrides])}"
    print_answer(args, plan_to_json(plan, found, args.lr_at), text)
    return ExitCode.USER if plan.decision.kind == "refuse" else ExitCode.DONE


def train_command(args: argparse.Namespace) -> int:
    """Train a recipe, and go on from its newest checkpoint.

    Everything that can fail cheaply fails before the ranks are joined.
    """
    exit_on_signal()
    with enduring("stdout"):  # libraries print there
        return _train(args, current_world())


def _train(args: argparse.Namespace, world: World) -> int:
    traced = [f"logging.profile_steps={args.profile}"] if args.profile else []
    # Before the import of torch, which takes seconds.
    recipe = load.load_recipe(args.recipe, [*args.overrides, *traced])
    stop_with_launcher()
    prefer_expandable_segments()
    from trainer.plan.ahead import found_elsewhere
    from trainer.plan.make import make_plan

    if line := found_elsewhere(recipe, args.recipe):
        logger.warning(line)
    plan = make_plan(recipe, world.world_size)
    for line in [*plan.broken, *plan.notes]:
        logger.warning(line)
    logger.info(plan.decision.render())
    if plan.decision.kind == "refuse":
        note_status(ExitCode.USER)
        wait_for_rank0(world.rank, ExitCode.USER)
        return ExitCode.USER
    from trainer.run.start import start

    status = start(plan, world)
    if line := what_next(recipe.directory):
        logger.info(line)
    return status


def what_next(directory: Path) -> str | None:
    """Name the commands that follow a run which has come to its end; None for one that only stopped."""
    if read_status(directory).get("state") != "finished":
        return None
    run = shlex.quote(str(directory))
    report, export = f"rewarm report {run} --out report.html", f"rewarm export {run} --out DIR"
    return f"the run is complete: `{report}` shows it, and `{export}` writes its model"


def evaluate_command(args: argparse.Namespace) -> int:
    """Measure bits per byte of a model on token shards, against another model if you like, and tasks."""
    if not args.data and args.tasks is None:
        what, fix = "is missing", "give token shards, or --tasks"
        raise UserError(what, field="--data", fix=fix)
    if args.tasks is None and (args.tasks_path is not None or args.limit is not None):
        raise UserError("have no effect without --tasks", field="--tasks-path, --limit", fix="leave them out")
    if args.tasks is not None:
        from trainer.evaluation.tasks import check_run_tasks, run_tasks

        check_run_tasks(args.model, args.tasks.split(","), args.tasks_path)  # before the shards are scored
    data, lines = _scores(args) if args.data else ({}, [])
    if args.tasks is not None:
        found = run_tasks(args.model, args.tasks.split(","), args.tasks_path, args.limit)
        data |= {"tasks": found}
        lines += [
            f"{task}: {', '.join(f'{name} {value:.4f}' for name, value in numbers.items())}"
            for task, numbers in found.items()
        ]
    print_answer(args, data, "\n".join(lines))
    return ExitCode.DONE


def _scores(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Score the shards that `args` name; the answer, and the same as lines."""
    from trainer.evaluation.against import score_against
    from trainer.evaluation.offline import run_seq_len, score_model

    if args.against is None:
        if args.against_data is not None:
            fix = "give --against BASE, or leave it out"
            raise UserError("has no effect without --against", field="--against-data", fix=fix)
        scores, pairs = score_model(args.model, args.data, args.seq_len, args.max_tokens), {}
    else:
        pairs = score_against(
            args.model, args.against, args.data, args.against_data, args.seq_len, args.max_tokens
        )
        scores = {prefix: both.model for prefix, both in pairs.items()}
    of_run = run_seq_len(args.model)
    columns = ("bits_per_byte", "nats_per_token", "tokens", "measured_on")
    data = {
        prefix: {name: getattr(score, name) for name in columns} | {"run_seq_len": of_run}
        for prefix, score in scores.items()
    }
    for prefix, both in pairs.items():
        base = {"model": args.against, "bits_per_byte": both.base.bits_per_byte}
        data[prefix] |= {"against": base, "forgetting": both.forgetting}
    lines = [
        f"{prefix}: {score.bits_per_byte:.4f} bits/byte, {score.nats_per_token:.4f} nats/token, "
        f"{score.tokens:,} tokens in windows of {_windows(score.measured_on['seq_len'], of_run)}; "
        f"document_mask {score.measured_on['document_mask']}"
        for prefix, score in scores.items()
    ]
    lines += [
        f"{prefix}: forgetting {both.forgetting:+.4f} bits/byte against {args.against} "
        f"({both.base.bits_per_byte:.4f} → {both.model.bits_per_byte:.4f})"
        for prefix, both in pairs.items()
    ]
    return data, lines


def _windows(seq_len: int, of_run: int | None) -> str:
    """The length of the windows of a score, beside that of the run."""
    if of_run is None:
        return f"{seq_len:,} (no run's seq_len is known)"
    if of_run == seq_len:
        return f"{seq_len:,}, the run's seq_len"
    return f"{seq_len:,}; the run's seq_len is {of_run:,}, so its own scores are not comparable with this one"


def export_command(args: argparse.Namespace) -> int:
    """Write a checkpoint as a Hugging Face model directory."""
    from trainer.checkpoint.export import export_checkpoint
    from trainer.checkpoint.history import find_checkpoint

    checkpoint = find_checkpoint(Path(args.checkpoint))
    lines = export_checkpoint(
        checkpoint, Path(args.out), args.dtype, args.shard_size, args.overwrite, args.average
    )
    result = {"checkpoint": str(checkpoint.path), "out": args.out, "dtype": args.dtype, "notes": lines}
    print_answer(args, result, "\n".join([f"{args.out}: {checkpoint.path.name} in {args.dtype}", *lines]))
    return ExitCode.DONE


def report_command(args: argparse.Namespace) -> int:
    """Write one HTML page about runs, and print their table."""
    from trainer.report.page import write_report

    table = write_report(find_runs(args.runs), Path(args.out))
    print_answer(args, {"out": args.out}, f"{table}\n\n{args.out}")
    return ExitCode.DONE
