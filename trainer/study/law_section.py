"""The laws on a study's own page: what is fitted to its arms, how well it predicts, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from tokenization.errors import UserError
from trainer.study.laws import BOOTSTRAPS, Observations
from trainer.study.observed import AskedLaw, FittedLaw, StudiedArm, asked_laws, fit_asked, studied_arms


@dataclass(frozen=True)
class StudyLaws:
    """The laws that the arms of a study allow, and why others are not there."""

    fitted: tuple[FittedLaw, ...] = ()
    missing: tuple[str, ...] = ()
    """A sentence without its full stop for each reason; there is one at least where nothing was fitted."""

    def lines(self) -> list[str]:
        """Return a line of text per law, and the reasons."""
        told = [
            f"law of {one.fit.law.name} on {one.stream}: mean relative error {one.fit.relative_error:.2%}"
            + "".join(
                f"; back-test, {test.held_out}: {test.error:.2%} ({test.error_without:.2%} without a law)"
                for test in one.tests
            )
            for one in self.fitted
        ]
        return [*told, *(f"not fitted: {reason}" for reason in self.missing)]


def fit_study(out: Path, bootstraps: int = BOOTSTRAPS) -> StudyLaws:
    """Fit the laws to the arms of the study in `out`; what cannot be fitted is a reason and not an error.

    Six seconds of CPU time for a study of six arms, of which the bootstrap takes three.
    """
    try:
        arms = studied_arms([out])
    except UserError as error:
        return StudyLaws(missing=(f"an arm cannot be read ({error})",))
    if not arms:
        return StudyLaws(missing=("no arm has ended with finite scores of its start and its end",))
    fitted, missing = [], []
    for asked in asked_laws(arms):
        try:
            found = fit_asked(asked, bootstraps)
        except (ArithmeticError, ValueError) as error:  # numpy's LinAlgError is a ValueError
            missing.append(f"the fit of {_name(asked)} did not end ({error})")
            continue
        if found is not None:
            fitted.append(found)
        elif reason := _lacking(asked):
            missing.append(reason)
    if not fitted and not missing:
        missing.append(_alike(arms))
    return StudyLaws(tuple(fitted), tuple(dict.fromkeys(missing if fitted else missing[:1])))


def _name(asked: AskedLaw) -> str:
    return f"the law of {asked.law.name} on {asked.stream}"


def _lacking(asked: AskedLaw) -> str:
    """Say what hinders a law that the study is about; empty if it is about something else."""
    data = asked.data
    if data is None or not asked.varied:
        return ""
    arms, free = len(set(data.arm.tolist())), len(asked.law.free_for(data))
    if len(data) <= free:
        return (
            f"{_name(asked)} has {free} free parameters, and {len(data)} scores after the beginning are too "
            "few; a smaller validation.every_tokens gives more"
        )
    return f"{_name(asked)} takes three arms, and {arms} ended with scores"


def _alike(arms: Sequence[StudiedArm]) -> str:
    return (
        f"the {len(arms)} arms that ended differ neither in their replay under one schedule nor in their "
        "schedule at one share of replay"
    )


def laws_section(laws: StudyLaws, figures: Sequence[str]) -> str:
    """Return the part of the page; `figures` has the figure of each fitted law, with its caption."""
    missing = "".join(f"<p class='note'>Not fitted: {escape(reason)}.</p>" for reason in laws.missing)
    drawn = "".join(
        f"<div>{figure}{_sheet(one)}</div>" for one, figure in zip(laws.fitted, figures, strict=True)
    )
    grid = f"<div class='grid'>{drawn}</div>" if drawn else ""
    return f"<section id='laws'><h2>Laws</h2>{_explained(laws)}{grid}{missing}</section>"


def _explained(laws: StudyLaws) -> str:
    if not laws.fitted:
        return ""
    return (
        "<p class='note'>Fitted by least squares to the scores after the warm-up and a tenth of the tokens, "
        "in bits per byte; tokens D and weights N are shares of the largest arm's. Intervals: 95 %, of a "
        f"wild bootstrap of {len(laws.fitted[0].fit.samples)} fits. A back-test fits a part of the scores "
        "and predicts the rest; without a law one would say the last score that was seen. The same with "
        "other studies beside it: <code>rewarm study laws</code>.</p>"
    )


def _sheet(fitted: FittedLaw) -> str:
    """Return the parameters, the residuals and the back-tests of a law."""
    fit = fitted.fit
    rows = ""
    for name, value in fit.values.items():
        low, high = fit.interval(name)
        sure = f"[{low:.4g}, {high:.4g}]" if name in fit.free else "held: what it stands for did not vary"
        rows += f"<tr><th scope='row'>{escape(name)}</th><td class='n'>{value:.4g}</td><td>{sure}</td></tr>"
    tests = "".join(
        f"<tr><th scope='row'>{escape(test.held_out)}</th><td class='n'>{test.error:.2%}</td>"
        f"<td>{test.error_without:.2%} without a law</td></tr>"
        for test in fitted.tests
    )
    head = (
        "<tr><th>back-test: predicted from the rest</th><th class='n'>mean relative error</th><th></th></tr>"
    )
    table = f"<table><tbody>{rows}</tbody></table>" + (
        f"<table><thead>{head}</thead><tbody>{tests}</tbody></table>" if tests else ""
    )
    distrust = f"<p><b>Not to be relied on:</b> {escape(fitted.distrust)}.</p>" if fitted.distrust else ""
    return f"<p class='note'>{_residuals(fit.data, fit.residuals, fit.relative_error)}</p>{distrust}" + (
        f"<div class='sheet'>{table}</div>"
    )


def _residuals(data: Observations, residuals: np.ndarray, error: float) -> str:
    arms = len(set(data.arm.tolist()))
    return (
        f"{len(data)} scores of {arms} arms: mean relative error {error:.2%}; residuals with a standard "
        f"deviation of {residuals.std():.4f}, the largest {np.abs(residuals).max():.4f} bits per byte"
    )
