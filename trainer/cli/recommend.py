"""`rewarm study recommend` and `rewarm study laws`: what studies say of a run to come."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenization.errors import ExitCode, UserError
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, path_text, positive_number, positive_real


def add_recommend(kinds: Any) -> None:
    """Add `recommend` and `laws`."""
    example = "runs/study-replay runs/study-max-lr --forgetting 0.02 --tokens 20e9 --parameters 7e9"
    recommend = add_command(kinds, "recommend", recommend_command, example)
    _add_directories(recommend)
    budget = "bits per byte that upstream may rise above the base"
    recommend.add_argument("--forgetting", type=positive_real, required=True, metavar="F", help=budget)
    tokens = "tokens of the run to come (default: those of the largest arm)"
    recommend.add_argument("--tokens", type=positive_number, metavar="N", help=tokens)
    weights = "weights of its model (default: those of the largest arm)"
    recommend.add_argument("--parameters", type=positive_number, metavar="N", help=weights)
    write = "write the recipe of the nearest arm with these values"
    recommend.add_argument("--write", type=path_text, metavar="RECIPE", help=write)
    steered = "with --write: a forgetting budget that steers the replay, with the gain that the arms show"
    recommend.add_argument("--for-budget", action="store_true", help=steered)

    laws = add_command(kinds, "laws", laws_command, "runs/study-replay")
    _add_directories(laws)
    figures = (
        "draw what each law predicts of scores that it has not seen into this new folder (default: none)"
    )
    laws.add_argument("--out", type=path_text, metavar="FOLDER", help=figures)


def _add_directories(command: argparse.ArgumentParser) -> None:
    directories = "the --out of studies, or folders above them"
    command.add_argument("directories", type=path_text, nargs="+", metavar="DIR", help=directories)


def recommend_command(args: argparse.Namespace) -> int:
    """Answer which replay, max_lr and warm-up a run should have, or why no number can be named."""
    from trainer.study.observed import studied_arms
    from trainer.study.recommend import recommend
    from trainer.study.recommended import write_recipe

    if args.for_budget and not args.write:
        raise UserError("has an effect only with --write", field="--for-budget", fix="add --write RECIPE")
    arms = studied_arms(args.directories)
    found = recommend(arms, args.forgetting, args.tokens, args.parameters)
    text = found.to_text()
    if args.write and not found.refused:
        text += "\n\n" + write_recipe(found, arms, Path(args.write), args.tokens, for_budget=args.for_budget)
    print_answer(args, {**found.to_json(), "written": None if found.refused else args.write}, text)
    return ExitCode.USER if found.refused else ExitCode.DONE


def laws_command(args: argparse.Namespace) -> int:
    """Fit the laws of loss to the arms of studies, with intervals, residuals and back-tests."""
    from tokenization.disk import refuse_existing
    from trainer.study.law_figures import write_law_figures
    from trainer.study.observed import fit_all, studied_arms

    if args.out:
        refuse_existing(args.out)
    found = fit_all(studied_arms(args.directories))
    if not found:
        what = (
            "does not hold the arms of a law: it needs scores of three arms that differ in replay or schedule"
        )
        raise UserError(what, field="DIR", value=" ".join(args.directories), fix="run `rewarm study replay`")
    notes = write_law_figures(found, Path(args.out)) if args.out else []
    text = "\n\n".join([*(one.to_text() for one in found), *notes])
    print_answer(args, [one.to_json() for one in found], text)
    return ExitCode.DONE
