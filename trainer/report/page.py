"""One HTML page about one or several runs: what they learnt, what they forgot, and how they got there."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tokenization import disk
from tokenization.errors import UserError
from trainer.metrics import names
from trainer.report.budgets import budgets
from trainer.report.charts import COLOURS
from trainer.report.figures import figures, mixtures, rate
from trainer.report.runs import RunHistory, alike, cells, compare_runs, gather_runs, unlike_line
from trainer.report.sets import sets_section, sets_text
from trainer.report.style import STYLE
from trainer.report.tasks import tasks_section, tasks_text


def write_report(runs: Sequence[str | Path], out: str | Path) -> str:
    """Writes a page about `runs` (run directories) to `out`: self-contained, no script, nothing to fetch.

    Returns the comparison as plain text; see `compare_runs`.

    Raises:
        UserError: a run directory holds no metrics; or `out` is something other than an earlier page.
    """
    out = Path(out)
    refuse_other_page(out)
    arms = gather_runs(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(out, page(arms, datetime.datetime.now().astimezone()))
    return "\n\n".join(filter(None, [compare_runs(arms), sets_text(arms), tasks_text(arms)]))


def refuse_other_page(out: Path) -> None:
    """Refuse to replace a file that is not a page made here.

    Raises:
        UserError: it is a directory, or a file of another kind.
    """
    if out.is_dir() or (out.exists() and _MARK.encode() not in out.read_bytes()[:65536]):
        what = "exists and is not a page that rewarm made"
        raise UserError(what, field="--out", value=str(out), fix="give a new file, such as report.html")


def page(arms: Sequence[RunHistory], now: datetime.datetime) -> str:
    """Return the whole page, dated `now`."""
    title = ", ".join(arm.name for arm in arms)
    body = "".join(
        (
            _header(arms, now),
            _summary(arms),
            figures(arms),
            budgets(arms),
            sets_section(arms),
            tasks_section(arms),
            mixtures(arms),
            _starts(arms),
            TERMS,
        )
    )
    return html_page(title, body)


def html_page(title: str, body: str) -> str:
    """Return a page in the project's style: it fetches nothing and has no script."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}{_MARK}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


_MARK = " · rewarm</title>"
"""In the head of every page: what has it may be replaced by a newer one."""

TERMS = """<section><h2>Terms</h2><dl>
<dt>bits per byte</dt><dd>total nats / (ln 2 · UTF-8 bytes): comparable across tokenizers; less is better</dd>
<dt>upstream</dt><dd>held-out text of the distribution that the base was trained on</dd>
<dt>downstream</dt><dd>held-out text of the distribution that is learnt</dd>
<dt>forgetting</dt><dd>upstream bits per byte now less the base's, measured before the first step</dd>
<dt>gain</dt><dd>downstream bits per byte of the base less those now</dd>
<dt>replay</dt><dd>share of the tokens that comes from the old distribution, at equal compute</dd>
</dl></section>"""
"""What the words of a page mean."""


def _header(arms: Sequence[RunHistory], now: datetime.datetime) -> str:
    line = headline(arms)
    sentence = f"<p class='headline'>{line}</p>" if line else ""
    facts = [*_times(arms), f"page made {now:%Y-%m-%d %H:%M %Z}", *_versions(arms)]
    return (
        f"<header><h1>What was learnt, what was forgotten</h1>{sentence}"
        f"<p class='meta'>{escape(' · '.join(facts))}</p></header>"
    )


def headline(arms: Sequence[RunHistory]) -> str:
    """The least and the most forgetful arm compared in a sentence of HTML, and which ones diverged.

    Only arms whose scores can be compared with each other; empty if there is nothing to say.
    """
    sentences = [_extremes(group) for group in alike(arms)]
    sentences += [
        f"<b>{escape(arm.name)}</b> diverged at step {arm.diverged_at}."
        for arm in arms
        if arm.diverged_at is not None
    ]
    return " ".join(filter(None, sentences))


def _extremes(arms: Sequence[RunHistory]) -> str:
    measured = sorted((arm for arm in arms if math.isfinite(arm.forgetting)), key=lambda arm: arm.forgetting)
    if len(measured) < 2:
        return ""
    least, most = measured[0], measured[-1]
    sentence = (
        f"<b>{escape(least.name)}</b> forgot {least.forgetting:.3f} bits per byte of upstream text, "
        f"<b>{escape(most.name)}</b> {most.forgetting:.3f}"
    )
    behind = least.series(names.DOWNSTREAM).end - most.series(names.DOWNSTREAM).end
    if math.isfinite(behind):
        side = "worse" if behind > 0 else "better"
        sentence += f"; downstream, the first of the two ended {abs(behind):.3f} bits per byte {side}"
    return sentence + "."


def _times(arms: Sequence[RunHistory]) -> list[str]:
    times = [record["time"] for arm in arms for record in arm.records]
    if not times:
        return []
    first, last = (datetime.datetime.fromtimestamp(time).astimezone() for time in (min(times), max(times)))
    return [f"trained {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"]


def _versions(arms: Sequence[RunHistory]) -> list[str]:
    """Return what the runs were computed with, as their lineage says."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        for entry in arm.lineage:
            for package, version in dict(entry.get("versions") or {}).items():
                if version not in found.setdefault(package, []):
                    found[package].append(version)
    shown = ("rewarm", "torch", "deepspeed", "transformers")
    return [f"{package} {' and '.join(found[package])}" for package in shown if package in found]


def _summary(arms: Sequence[RunHistory]) -> str:
    groups = alike(arms)
    why = f"<p class='note'>{escape(line)}</p>" if (line := unlike_line(groups)) else ""
    return why + "".join(map(_table, groups))


def _table(arms: Sequence[RunHistory]) -> str:
    worst = max((arm.forgetting for arm in arms if math.isfinite(arm.forgetting)), default=0.0)
    rows = "".join(_summary_row(arm, worst) for arm in arms)
    return (
        "<section class='sheet'><table><thead><tr><th>arm</th><th class='n'>replay</th>"
        "<th class='n'>peak LR</th><th class='n'>tokens</th><th class='n'>upstream,<br>bits per byte</th>"
        "<th class='n'>forgetting</th><th></th><th class='n'>downstream,<br>bits per byte</th>"
        f"<th class='n'>gain</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _summary_row(arm: RunHistory, worst: float) -> str:
    name, tokens, upstream, forgetting, downstream, gain = cells(arm)
    share = arm.forgetting / worst if worst > 0 and math.isfinite(arm.forgetting) else 0.0
    size = f"width:{90 * max(share, 0):.0f}px;background:{_colour(arm)}"
    rates = arm.series(names.LR).values
    numbers = [
        "–" if arm.replay is None or arm.from_scratch else f"{100 * arm.replay:.3g} %",
        rate(max(rates)) if rates else "–",
        tokens,
        upstream,
        f"<b>{forgetting}</b>",
    ]
    return (
        f"<tr><th scope='row'>{_key(arm)}{escape(name)}</th>"
        + "".join(f"<td class='n'>{cell}</td>" for cell in numbers)
        + f"<td><span class='amount' style='{size}'></span></td>"
        + f"<td class='n'>{downstream}</td><td class='n'>{gain}</td></tr>"
    )


def _colour(arm: RunHistory) -> str:
    return COLOURS[arm.number % len(COLOURS)]


def _key(arm: RunHistory) -> str:
    return f"<i class='key' style='background:{_colour(arm)}'></i>"


def _starts(arms: Sequence[RunHistory]) -> str:
    """Return what each start of each run did, and whether repeated steps gave the same numbers."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in (_key(arm) + escape(arm.name), *start)) + "</tr>"
        for arm in arms
        for start in _starts_of(arm)
    )
    notes = "".join(f"<p class='note'>{escape(_repeated(arm))}</p>" for arm in arms if arm.repeated)
    return (
        f"<section><h2>Starts</h2>{notes}<div class='sheet'><table><thead><tr><th>arm</th><th>when</th>"
        f"<th>decision</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _starts_of(arm: RunHistory) -> list[tuple[str, str, str]]:
    """Return (when, decision, reason) from lineage.jsonl, or else from the metrics."""
    if arm.lineage:
        return [
            (
                escape(_when(entry.get("time"))),
                escape(str(entry.get("kind", "–")).replace("_", " ")),
                escape(str(entry.get("reason", "–"))),
            )
            for entry in arm.lineage
        ]
    found = []
    for attempt in arm.attempts:
        restored = attempt.restored_step is not None
        reason = (
            f"goes on from step {attempt.restored_step}" if restored else "no checkpoint in the run directory"
        )
        found.append((_when(attempt.time), "restore" if restored else "start", reason))
    return found


def _when(time: object) -> str:
    """Format a time from seconds since 1970 or from ISO 8601."""
    try:
        stamp = (
            datetime.datetime.fromisoformat(time)
            if isinstance(time, str)
            else datetime.datetime.fromtimestamp(float(time))  # type: ignore[arg-type]
        )
    except (TypeError, ValueError):
        return "–"
    return f"{stamp.astimezone():%Y-%m-%d %H:%M:%S}"


def _repeated(arm: RunHistory) -> str:
    steps = f"{arm.name} did {len(arm.repeated)} steps twice after restoring: loss, LR and gradient norm"
    if arm.restore_error == 0:
        return f"{steps} were equal to the last digit."
    return f"{steps} differed by up to {arm.restore_error:.3g}."
