"""A study's page: the question, the verdicts, the paper's figure with the user's data, and the table."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from tokenization import disk
from trainer.metrics.progress import short
from trainer.report.charts import Line, chart
from trainer.report.document import write_figures
from trainer.report.page import TERMS, html_page, refuse_other_page
from trainer.study.grids import find_study
from trainer.study.law_figures import draw_laws, law_captions
from trainer.study.law_section import StudyLaws, fit_study, laws_section
from trainer.study.results import Arm, read_record, read_results
from trainer.study.spec import AVERAGED
from trainer.study.summary import (
    HEAD,
    Summary,
    band_of,
    downstream_of,
    forgetting_of,
    pareto_front,
    row,
    summarize,
    summary_table,
)
from trainer.study.verdicts import Judgement, judge_study, verdict_lines

STUDY_PAGE = "report.html"
FIGURE_FOLDER = "figures"
"""Folder in a study's directory."""

FRONT, AVERAGES = 13, 6
"""Numbers of a line that is grey and dashed, and of one that is grey."""

SIGNS = 15_000_000
"""Parameters below which a study shows signs and not ratios."""


def conclude(out: Path) -> str:
    """Write the page and its figures about the study in `out`, and return what it found as text.

    Raises:
        UserError: the directory is not a study's, or its page is not one of ours.
        InfrastructureError: the disk is full or fails.
    """
    refuse_other_page(out / STUDY_PAGE)
    name, arms = read_record(out).study, read_results(out)
    summaries, verdicts, laws = summarize(arms), judge_study(name, arms), fit_study(out)
    pictures, of_laws = draw_study(summaries), draw_laws(laws.fitted)
    everything = pictures | of_laws
    notes = write_figures(everything, out / FIGURE_FOLDER)
    drawn = {
        which: [kind for kind in ("svg", "png") if (out / FIGURE_FOLDER / f"{which}.{kind}").exists()]
        for which in everything
    }
    now = datetime.datetime.now().astimezone()
    disk.write_atomically(out / STUDY_PAGE, study_page(name, arms, verdicts, laws, everything, drawn, now))
    study = find_study(name)
    signs = filter(None, [signs_line(arms), *dict.fromkeys(notes)])
    told = [*verdict_lines(verdicts)] or ["no paper's finding is held against this study"]
    lines = ["", summary_table(summaries), "", *told, "", *laws.lines(), "", *signs]
    return "\n".join([study.question, *lines, f"The papers: {study.found}."])


def signs_line(arms: Sequence[Arm]) -> str:
    """Say how far small models can be trusted; empty if none is small."""
    known = [arm.parameters for arm in arms if arm.parameters]
    if not known or min(known) >= SIGNS:
        return ""
    return (
        f"The smallest model here has {short(min(known))} parameters: below 15M a study shows signs, "
        "not ratios. The rank correlation of mixtures with those of a 1B model is 0.73 at 1M parameters and "
        "above 0.89 from 15M (Olmix, arXiv 2602.12237)."
    )


def draw_study(summaries: Sequence[Summary]) -> dict[str, str]:
    """Return the figures by name: both losses over tokens with bands over seeds, and the trade-off plane.

    An arm from scratch has a figure of its own: its first losses would flatten all others. Averages of two
    models stand in the plane alone: they were not trained over tokens.
    """
    continued = [(n, one) for n, one in enumerate(summaries) if not any(arm.from_scratch for arm in one.arms)]
    scratch = [(n, one) for n, one in enumerate(summaries) if any(arm.from_scratch for arm in one.arms)]
    trained = [(n, one) for n, one in continued if AVERAGED not in one.arms[0].fields]
    streams = ("upstream", "downstream")
    drawn = {
        **{stream: _over_tokens(stream, trained) for stream in streams},
        "trade-off": _plane(continued),
        **{f"{stream}-from-scratch": _over_tokens(stream, scratch) for stream in streams},
    }
    return {name: picture for name, picture in drawn.items() if picture}


def _over_tokens(stream: str, summaries: Sequence[tuple[int, Summary]]) -> str:
    lines = []
    for number, one in summaries:
        shown = one.ended or one.arms  # a seed that is under way would cut the others short
        band = band_of([getattr(arm, stream) for arm in shown])
        several = band.range if len(shown) > 1 else ()
        lines.append(Line(one.title, number, band.tokens, band.means, dots=True, band=several))
    described = f"{stream} bits per byte over tokens"
    return chart(
        lines,
        x_format=short,
        y_format="{:.2f}".format,
        described=described,
    )


def _plane(summaries: Sequence[tuple[int, Summary]]) -> str:
    """Draw a point per arm in the plane of downstream loss and forgetting, its seeds pale, and the front."""
    lines, means = [], []
    averages: dict[str, list[tuple[float, float, float]]] = {}
    for number, one in summaries:
        pairs = [(downstream_of(arm), forgetting_of(arm)) for arm in one.ended]
        xs, ys = one.interval(downstream_of).mean, one.interval(forgetting_of).mean
        means.append((xs, ys))
        if len(pairs) > 1:
            seeds = list(zip(*pairs, strict=True))
            lines.append(Line("", number, seeds[0], seeds[1], faint=True, joined=False))
        if not pairs or xs != xs or ys != ys:
            continue
        share = one.arms[0].fields.get(AVERAGED)
        if share is None:
            lines.append(Line(one.title, number, [xs], [ys], joined=False))
        else:  # eleven names would hide the line
            name = one.title if share in (0, 0.5, 1) else ""
            lines.append(Line(name, AVERAGES, [xs], [ys], joined=False))
            averages.setdefault(one.size, []).append((share, xs, ys))
    for points in averages.values():
        _, along, upward = zip(*sorted(points), strict=True)
        lines.insert(0, Line("", AVERAGES, along, upward))
    front = [means[number] for number in pareto_front(means)]
    if len(front) > 1:
        lines.insert(0, Line("", FRONT, [x for x, _ in front], [y for _, y in front], faint=True))
    return chart(
        lines,
        x_format="{:.3f}".format,
        y_format="{:+.3f}".format,
        x_title="downstream, bits per byte",
        zero=True,
        at_end=True,
        described="forgetting over downstream bits per byte",
    )


_BANDED = ("upstream", "downstream")

_CAPTIONS = {
    "upstream": ("Upstream", "held-out text of the old distribution, bits per byte over the phase's tokens"),
    "downstream": (
        "Downstream",
        "held-out text of the new distribution, bits per byte over the phase's tokens",
    ),
    "upstream-from-scratch": ("Upstream, from scratch", "the arm that began with random weights"),
    "downstream-from-scratch": ("Downstream, from scratch", "the arm that began with random weights"),
    "trade-off": (
        "The trade",
        "forgetting over downstream bits per byte at the end: down and left is better; pale: single seeds; "
        "dashed: the arms that no other beats in both (Pareto front)",
    ),
}


def study_page(
    name: str,
    arms: Sequence[Arm],
    verdicts: Sequence[Judgement],
    laws: StudyLaws,
    pictures: Mapping[str, str],
    drawn: Mapping[str, Sequence[str]],
    now: datetime.datetime,
) -> str:
    """Return the whole page, dated `now`; `drawn` has the endings of the files beside it for each picture."""
    study, summaries = find_study(name), summarize(arms)
    seeds = len({arm.seed for arm in arms})
    counted = f"{len(summaries)} arms, {seeds} seed{'s' * (seeds > 1)}"
    facts = f"study {name} · {counted} · page made {now:%Y-%m-%d %H:%M %Z}"
    signs = f"<p class='warning'>{escape(line)}</p>" if (line := signs_line(arms)) else ""
    header = (
        f"<header><h1>{escape(study.question)}</h1><p class='headline'>The papers: {escape(study.found)}.</p>"
        f"<p class='meta'>{escape(facts)}</p>{signs}</header>"
    )
    captions = _CAPTIONS | (of_laws := law_captions(laws.fitted))
    if any(AVERAGED in arm.fields for arm in arms):
        title, what = captions["trade-off"]
        captions["trade-off"] = (title, f"{what}; grey line: averages, from the base to the continued model")
    figures = {
        which: _figure(which, picture, captions[which], seeds, drawn[which])
        for which, picture in pictures.items()
    }
    law_figures = [figures.pop(which) for which in of_laws]
    body = [
        header, _verdicts(verdicts),
        f"<section><div class='grid'>{''.join(figures.values())}</div></section>",
        _table(summaries), laws_section(laws, law_figures), TERMS,
    ]  # fmt: skip
    return html_page(study.question, "".join(body))


def _figure(which: str, picture: str, about: tuple[str, str], seeds: int, kinds: Sequence[str]) -> str:
    title, what = about
    band = "; bands: from the lowest to the highest seed" if seeds > 1 and which.startswith(_BANDED) else ""
    files = " · ".join(f"<a href='{FIGURE_FOLDER}/{which}.{kind}'>{kind.upper()}</a>" for kind in kinds)
    caption = f"<figcaption><b>{escape(title)}</b>{escape(what + band)} · {files}</figcaption>"
    return f"<figure id='{which}'>{caption}{picture}</figure>"


def _verdicts(verdicts: Sequence[Judgement]) -> str:
    if not verdicts:
        return "<section><p>No paper's finding is held against this: the question is your own.</p></section>"
    return f"<section><h2>Verdicts on this data</h2>{''.join(map(_verdict, verdicts))}</section>"


def _verdict(verdict: Judgement) -> str:
    kind = {"holds": "holds", "does not hold": "fails"}.get(verdict.outcome, "open")
    size = f" ({verdict.size})" if verdict.size else ""
    rows = "".join(
        f"<tr><td>{escape(one.contrast.text)}</td><td class='n'>{escape(str(one.interval))}</td>"
        f"<td>{one.outcome}</td></tr>"
        for one in verdict.compared
    )
    table = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    return (
        f"<div class='verdict {kind}'><span class='outcome'>{verdict.outcome}</span>"
        f"<b>{escape(verdict.claim.name + size)}</b><p>{escape(verdict.reason)} "
        f"<span class='note'>({escape(verdict.claim.paper)})</span></p>"
        f"<details><summary>paired differences, bits per byte, with 95 % intervals</summary>"
        f"<div class='sheet'>{table}</div></details></div>"
    )


def _table(summaries: Sequence[Summary]) -> str:
    first, *measured, last = HEAD
    head = f"<th>{first}</th>{''.join(f'<th class=n>{cell}</th>' for cell in measured)}<th>{last}</th>"
    rows = ""
    for name, *numbers, note in map(row, summaries):
        cells = "".join(f"<td class='n'>{escape(number)}</td>" for number in numbers)
        rows += f"<tr><th scope='row'>{escape(name)}</th>{cells}<td>{escape(note)}</td></tr>"
    return (
        "<section><h2>Arms</h2><p class='note'>Bits per byte at the end, means over seeds with 95 % "
        "intervals (Student's t); less is better.</p>"
        f"<div class='sheet'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "</section>"
    )
