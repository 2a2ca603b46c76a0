"""`rewarm study`: a paper's experiment with the user's recipe and data."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenization.errors import ExitCode, UserError
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, add_noun, path_text, positive_number, recipe_path
from trainer.cli.jobs import own_commands
from trainer.cli.recommend import add_recommend
from trainer.machine.slurm import Resources
from trainer.storage.run_directory import RunDirectory
from trainer.study.grids import STUDIES
from trainer.study.spec import SCALES, Options, read_vary

if TYPE_CHECKING:  # what a study imports takes a second
    from trainer.study.series import Request


def add_study(commands: Any) -> None:
    """Add `study`, its studies, and what follows from them."""
    kinds = add_noun(commands, "study", "a paper's experiment with your recipe, and what follows from it")
    for name, study in STUDIES.items():
        example = f"--recipe recipe.yaml --out runs/{name} phases.0.tokens=1e8"
        one = add_command(kinds, name, study_command, example, study.question.replace("%", "%%"))
        one.set_defaults(name=name)
        _add_options(one)
    add_recommend(kinds)


def _add_options(study: argparse.ArgumentParser) -> None:
    varied = "the recipe whose last phase is varied (branch: default is the run's own)"
    study.add_argument("--recipe", type=recipe_path, metavar="RECIPE", help=varied)
    folder = "folder of the study: its arms, their table and its page"
    study.add_argument("--out", type=path_text, required=True, metavar="DIR", help=folder)
    ranks = "number of ranks of each arm (default: one per GPU, or 1)"
    study.add_argument("--nproc", type=positive_number, metavar="N", help=ranks)
    seeds = (
        "train every arm with N seeds (default: 1, which gives no verdict; 3 are the least that is useful)"
    )
    study.add_argument("--seeds", type=positive_number, default=1, metavar="N", help=seeds)
    sizes = f"of model.init: {', '.join(SCALES)}, between commas; of model.base: a list of bases"
    study.add_argument("--sizes", default="", metavar="A,B", help=sizes)
    at_once = "train N arms at a time (default: 1)"
    study.add_argument("--parallel", type=positive_number, default=1, metavar="N", help=at_once)
    vary = "of grid and branch: a field of the recipe (branch: of its anneal) and its values; may be repeated"
    study.add_argument("--vary", action="append", default=[], metavar="FIELD=A,B", help=vary)
    trunk = "of branch: the run and the tokens of the checkpoint that all anneals leave from"
    study.add_argument("--from", dest="branch", metavar="RUN@TOKENS", help=trunk)
    plain = "of new_rows: the recipe of the base and its shards before the vocabulary was extended"
    study.add_argument("--unextended", type=recipe_path, metavar="RECIPE", help=plain)
    only = "train nothing: write DIR/arms.txt, and DIR/arms.sbatch, a Slurm array of an arm per task"
    study.add_argument("--arms-only", action="store_true", help=only)
    fields = "change a field of the recipe in every arm"
    study.add_argument("overrides", nargs="*", default=[], metavar="field=value", help=fields)


def study_command(args: argparse.Namespace) -> int:
    """Repeat a paper's experiment with your recipe, before you spend the cluster."""
    from trainer.recipe.load import load_recipe
    from trainer.study import series
    from trainer.study.line import score_line
    from trainer.study.own_text import write_own_text
    from trainer.study.page import STUDY_PAGE, conclude
    from trainer.study.results import read_results
    from trainer.study.verdicts import judge_study

    request = _request(args)
    if args.name == "self_replay":
        write_own_text(load_recipe(request.recipe, request.overrides), request.out, request.world_size)
    arms = series.plan_arms(request)
    listed = series.record_arms(request, arms)
    result = {"arms": str(listed), "runs": [str(arm.directory) for arm in arms]}
    if args.arms_only:
        job = Resources(gpus_per_node=args.nproc) if args.nproc else Resources()
        script = series.write_array(request, listed, len(arms), own_commands(), job)
        text = f"{listed}: {len(arms)} arms\nsbatch {shlex.quote(str(script))}"
        print_answer(args, {**result, "script": str(script)}, text)
        return ExitCode.DONE
    status = series.train_arms(request, arms, args.parallel)
    if status in (ExitCode.REQUEUE, ExitCode.INTERRUPTED) or status > 128:
        return status
    if args.name == "merge":
        score_line(request.out)
    page = request.out / STUDY_PAGE
    verdicts = judge_study(request.study, read_results(request.out))
    told = [
        {"finding": one.claim.name, "size": one.size, "outcome": one.outcome, "reason": one.reason}
        for one in verdicts
    ]
    text = f"{conclude(request.out)}\n\n{page}"
    print_answer(args, {**result, "report": str(page), "verdicts": told}, text)
    return status


def _request(args: argparse.Namespace) -> Request:
    """Read what is asked for.

    Raises:
        UserError: an option is missing, has no effect on this study, or cannot be read.
    """
    from trainer.machine.devices import count_devices
    from trainer.study.grids import find_study
    from trainer.study.own_text import own_text_prefix
    from trainer.study.series import Request
    from trainer.study.trunk import find_branching

    find_study(args.name)
    of_some = {"--vary": (args.vary, ("grid", "branch")), "--from": (args.branch, ("branch",))}
    of_some["--unextended"] = (args.unextended, ("new_rows",))
    for option, (given, studies) in of_some.items():
        if given and args.name not in studies:
            what = f"has no effect on the study {args.name}"
            raise UserError(what, field=option, fix=f"remove it; it is for {' and '.join(studies)}")
    if args.name == "branch" and (args.seeds > 1 or args.sizes):
        option = "--sizes" if args.sizes else "--seeds"
        fix = "train a trunk per seed or size, and branch from each of them into an --out of its own"
        raise UserError("has no effect on the study branch, whose trunk is one run", field=option, fix=fix)
    own_text = str(own_text_prefix(Path(args.out)))
    trunk, options = None, Options(vary=tuple(map(read_vary, args.vary)), own_text=own_text)
    if args.sizes and args.name == "self_replay":
        fix = "remove it, and give each base a study of its own"
        raise UserError("has no effect on self_replay, whose base writes the text", field="--sizes", fix=fix)
    recipe = args.recipe
    if args.branch:
        trunk, state = find_branching(args.branch)
        options = replace(options, branched=(state.phase, state.samples * state.running.data.seq_len))
        recipe = recipe or str(RunDirectory(trunk.directory).recipe)
    if recipe is None:
        raise UserError("is missing", field="--recipe", fix="give the recipe whose last phase is varied")
    return Request(
        study=args.name,
        recipe=Path(recipe),
        out=Path(args.out),
        overrides=tuple(args.overrides),
        world_size=args.nproc or count_devices(),
        seeds=args.seeds,
        sizes=tuple(size for size in args.sizes.split(",") if size),
        options=options,
        unextended=Path(args.unextended) if args.unextended else None,
        trunk=trunk,
    )
