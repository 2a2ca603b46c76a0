"""The report: one page, self-contained, that says of each run what its metrics say."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import scheduler_runs
from tokenization.errors import UserError
from trainer.metrics.log import Metrics
from trainer.metrics.names import source_tokens
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.schema import Logging
from trainer.report.charts import Line, chart, ticks
from trainer.report.figures import phase_shares, rate, smoothed
from trainer.report.labels import spread
from trainer.report.page import headline, write_report
from trainer.report.runs import compare_runs, gather_runs
from trainer.report.sets import set_rows

QUICKSTART = Path(__file__).resolve().parents[3] / "launch" / "recipes" / "quickstart.yaml"
TOKENS = 2048  # a step of the quickstart


def run(
    directory,
    *,
    upstream=(1.5, 2.5),
    downstream=(3.0, 2.0),
    steps=10,
    restored=None,
    overrides=(),
    measured_on=None,
    extra=None,
):
    """A run of `steps`, evaluated at its start and end; killed after step 8 if `restored` (to that step)."""
    directory.mkdir(parents=True)
    (directory / "recipe.resolved.yaml").write_text(
        dump_recipe(load_recipe(QUICKSTART, overrides)), encoding="utf-8"
    )

    def attempt(first, last, restored_step):
        logging = Logging(tensorboard=False)
        metrics = Metrics(
            directory,
            logging,
            rank=0,
            name="x",
            total_tokens=steps * TOKENS,
            restored_step=restored_step,
            measured_on=measured_on,
            stream=io.StringIO(),
        )
        for step in range(first, last + 1):
            values = {"loss/train": 4 - step / 10, "lr": 3e-4, "grad_norm": 1.0, "perf/tokens_per_s": 900.0}
            values |= extra or {}
            values[source_tokens("chinese")] = step * TOKENS * 3 // 4
            values[source_tokens("english")] = step * TOKENS // 4
            if step in (0, steps) and upstream:
                place = 0 if step == 0 else 1
                values["eval/upstream/bits_per_byte"] = upstream[place]
                values["eval/upstream/forgetting"] = upstream[place] - upstream[0]
                values["eval/downstream/bits_per_byte"] = downstream[place]
            metrics.log(step, step * TOKENS, values)
        metrics.close()

    if restored is None:
        attempt(0, steps, None)
    else:
        attempt(0, 8, None)
        attempt(restored + 1, steps, restored)
    return directory


@pytest.fixture
def two(tmp_path):
    return [
        run(tmp_path / "replay-0", overrides=["phases.0.mixture.replay_ratio=0"]),
        run(tmp_path / "replay-25", upstream=(1.5, 1.75), downstream=(3.0, 2.125), restored=5),
    ]


def written(runs, tmp_path) -> str:
    write_report(runs, tmp_path / "out" / "report.html")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees, without tags."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


# -------------------------------------------------------------------------------------------------- table


def test_the_table_from_start_to_end(two):
    assert compare_runs(gather_runs(two)).splitlines() == [
        "arm        tokens  upstream         forgetting  downstream       gain",
        "---------  ------  ---------------  ----------  ---------------  -------",
        "replay-0   20,480  1.5000 → 2.5000  +1.0000     3.0000 → 2.0000  +1.0000",
        "replay-25  20,480  1.5000 → 1.7500  +0.2500     3.0000 → 2.1250  +0.8750",
    ]


def test_a_run_without_evaluation_has_dashes_and_chinese_names_line_up(tmp_path):
    lines = compare_runs(
        gather_runs([run(tmp_path / "复述", upstream=None), run(tmp_path / "ab")])
    ).splitlines()
    assert lines[2] == "复述  20,480  –                –           –                –"
    assert lines[3].startswith("ab    20,480  1.5000")


def test_names_are_as_long_as_it_takes_to_differ(tmp_path):
    arms = gather_runs([run(tmp_path / "a" / "run"), run(tmp_path / "b" / "run")])
    assert [arm.name for arm in arms] == ["a/run", "b/run"]


def test_bad_runs_are_named(tmp_path):
    with pytest.raises(UserError, match="no runs"):
        gather_runs([])
    with pytest.raises(UserError, match=r"absent/metrics\.jsonl: cannot be read"):
        gather_runs([tmp_path / "absent"])


def test_damaged_lines_cost_no_report_and_are_said_once(two, tmp_path, log_lines):
    directory = two[1]
    (directory / "lineage.jsonl").write_text('{"kind": "start", "reason": "whole"}\nrubbish\n{"kind": "st')
    path = directory / "metrics.jsonl"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, second[:40] + "\n", *rest]) + '{"attempt": 2, "st')
    assert "start whole" in text_of(written(two, tmp_path))
    assert log_lines == [
        f"{path}: passed over 1 damaged line(s) of {len(rest) + 2}: 2",
        f"{path}: passed over its last line, which is cut short",
        f"{directory / 'lineage.jsonl'}: passed over 1 damaged line(s) of 2: 2",
        f"{directory / 'lineage.jsonl'}: passed over its last line, which is cut short",
    ]


def test_a_restore_is_compared_with_what_it_did_again(two, tmp_path):
    _, arm = gather_runs(two)
    assert arm.restored_at == [(5, 5 * TOKENS)]
    assert [before["step"] for before, _ in arm.repeated] == [6, 7, 8]
    assert arm.restore_error == 0
    assert "replay-25 did 3 steps twice" in text_of(written(two, tmp_path))

    lines = (two[1] / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-3])  # step 8, done again
    assert last["step"] == 8
    last["loss/train"] += 1e-15
    (two[1] / "metrics.jsonl").write_text("\n".join([*lines[:-3], json.dumps(last), *lines[-2:], ""]))
    assert 0 < gather_runs(two)[1].restore_error < 2e-15
    assert "differed by up to" in text_of(written(two, tmp_path))


def test_a_restore_between_two_records_is_marked_at_the_one_before(tmp_path):
    directory = run(tmp_path / "run", restored=5)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rare = [line for line in lines if json.loads(line).get("step", 0) % 4 == 0]
    (directory / "metrics.jsonl").write_text("\n".join([*rare, ""]))
    (arm,) = gather_runs([directory])
    assert arm.restored_at == [(5, 4 * TOKENS)]


# -------------------------------------------------------------------------------------------------- unlike


def on(stream="upstream", **changes):
    """What a score on each set is measured on, with changes to one of them."""
    facts = {
        name: {"fingerprint": name, "tokens": 1025, "seq_len": 64} for name in ("upstream", "downstream")
    }
    return {**facts, stream: {**facts[stream], **changes}}


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fingerprint": "b"}, "shards (another text or tokenizer)"),
        ({"tokens": 257}, "tokens 1025 and 257"),
        ({"seq_len": 128}, "seq_len 64 and 128"),
        ({"document_mask": True}, "document_mask unknown and True"),
    ],
)
def test_unlike_scores_stand_in_tables_of_their_own_with_the_reason(tmp_path, stream, changed, why):
    one = run(tmp_path / "one", measured_on=on())
    other = run(tmp_path / "other", upstream=(1.5, 1.6), measured_on=on(stream, **changed))
    like = run(tmp_path / "like", upstream=(1.5, 1.75), measured_on=on())
    reason = (
        "Scores of different tables are not comparable: they are measured on unlike things. "
        f"one and other differ in {stream} {why}."
    )
    page = written([one, other, like], tmp_path)
    first, second, told = compare_runs(gather_runs([one, other, like])).split("\n\n")
    assert [line.split()[0] for line in first.splitlines()[2:]] == ["one", "like"]
    assert [line.split()[0] for line in second.splitlines()[2:]] == ["other"]
    assert told == reason
    assert reason in text_of(page)
    assert page.count("<th>arm</th><th class='n'>replay</th>") == 2
    assert "like forgot 0.250 bits per byte of upstream text, one 1.000" in text_of(page)
    assert "other forgot" not in text_of(page)
    assert "Curves: one, like" in page
    assert "Curves: other" in page


def test_like_scores_stand_in_one_table_without_a_word(tmp_path):
    runs = [run(tmp_path / name, measured_on=on()) for name in ("a", "b")]
    runs.append(run(tmp_path / "c", upstream=None, measured_on=on(tokens=9)))  # nothing is scored
    page = written(runs, tmp_path)
    assert "not comparable" not in page
    assert page.count("<th>arm</th><th class='n'>replay</th>") == 1


@pytest.mark.parametrize("edit", ["validation.max_tokens=256", "validation.upstream=other"])
def test_older_runs_are_held_against_each_other_by_their_recipes(tmp_path, edit):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", overrides=[edit])]
    assert "a and b differ in upstream" in compare_runs(gather_runs(runs))


def test_scores_of_one_run_on_two_sets_are_not_subtracted(tmp_path):
    """The validation set was exchanged after step 5: only what is scored on the last one is shown."""
    directory = tmp_path / "run"
    for first, last, facts in ((0, 5, on()), (6, 10, on(fingerprint="b"))):
        metrics = Metrics(
            directory, Logging(tensorboard=False), rank=0, name="x", total_tokens=1, stream=io.StringIO(),
            restored_step=first - 1 if first else None, measured_on=facts,
        )  # fmt: skip
        for step in (first, last):
            scores = {
                "eval/upstream/bits_per_byte": 1 + step / 10,
                "eval/downstream/bits_per_byte": 3 - step / 10,
            }
            metrics.log(step, step * TOKENS, scores)
        metrics.close()
    (arm,) = gather_runs([directory])
    assert arm.series("eval/upstream/bits_per_byte").values == (1.6, 2.0)
    assert arm.series("eval/downstream/bits_per_byte").values == (3.0, 2.5, 2.4, 2.0)


# -------------------------------------------------------------------------------------------------- diverged


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e200])
def test_a_run_that_diverged_is_tabled_as_one(tmp_path, bad):
    good = run(tmp_path / "good", upstream=(2.0, 2.1))
    runs = [good, run(tmp_path / "bad", upstream=(2.0, bad), downstream=(3.0, bad))]
    row = compare_runs(gather_runs(runs)).splitlines()[3]
    diverged = "diverged at step 10"
    assert re.split("  +", row) == ["bad", "20,480", f"2.0000 → {diverged}", "–", "3.0000 → diverged", "–"]
    text = text_of(written(runs, tmp_path))
    assert "bad diverged at step 10." in text
    assert "good forgot" not in text, "there is no other run to compare it with"


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_divergence_is_dated_from_the_first_loss_that_is_not_finite_to_the_end(tmp_path, bad):
    directory = tmp_path / "run"
    losses = [3.0, bad, 2.9, 2.8, bad, bad]
    metrics = Metrics(
        directory, Logging(tensorboard=False), rank=0, name="x", total_tokens=1, stream=io.StringIO()
    )
    for step, loss in enumerate(losses):
        metrics.log(step, step * TOKENS, {"loss/train": loss, "grad_norm": loss, "lr": 1e-3})
    metrics.close()
    assert "diverged at step 4" in compare_runs(gather_runs([directory]))
    written([directory], tmp_path)


def test_a_run_whose_first_scores_are_not_finite_has_no_change_to_show(tmp_path):
    directory = run(tmp_path / "run", upstream=(math.nan, 2.0), downstream=(math.inf, 2.0))
    row = compare_runs(gather_runs([directory])).splitlines()[2]
    assert re.split(r"  +", row.strip()) == ["run", "20,480", "nan → 2.0000", "–", "inf → 2.0000", "–"]
    written([directory], tmp_path)


NUMBERS = st.floats() | st.sampled_from([0.0, 5e-324, 1e-200, 1.0, 1.0 + 2**-52, 3e38, 1e99, -1e99, 1e308])


@given(values=st.lists(NUMBERS, min_size=1, max_size=6))
def test_whatever_was_recorded_there_is_a_page(tmp_path_factory, values):
    directory = tmp_path_factory.mktemp("runs") / "run"
    metrics = Metrics(
        directory, Logging(tensorboard=False), rank=0, name="x", total_tokens=1, stream=io.StringIO()
    )
    drawn = ("loss/train", "grad_norm", "lr", "perf/tokens_per_s")
    scored = ("eval/upstream/bits_per_byte", "eval/downstream/bits_per_byte", "eval/upstream/forgetting")
    for step, value in enumerate(values):
        metrics.log(step, step * TOKENS, dict.fromkeys([*drawn, *scored], value))
    metrics.close()
    page = written([directory], directory.parent)
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture)
        assert not re.search(r'd="[^"]*(nan|inf)', picture)


# -------------------------------------------------------------------------------------------------- page


def test_the_page_says_what_was_learnt_and_forgotten(two, tmp_path):
    page = written(two, tmp_path)
    text = text_of(page)
    assert (
        "replay-25 forgot 0.250 bits per byte of upstream text, replay-0 1.000; downstream, the first of the"
        in text
    )
    assert "ended 0.125 bits per byte worse." in text
    assert re.search(
        r"replay-0 0 % 3e-4 20,480 1\.5000 → 2\.5000 \+1\.0000 3\.0000 → 2\.0000 \+1\.0000", text
    )
    assert re.search(r"replay-25 25 % 3e-4 20,480 1\.5000 → 1\.7500 \+0\.2500", text)
    for figure in ("Upstream", "Downstream", "Forgetting", "The trade", "Training loss", "Learning rate"):
        assert f"<b>{figure}</b>" in page
    assert "restored at step 5" in page
    assert "chinese 15.4k · 75 %" in page


def test_a_run_with_older_metric_names_is_drawn_alike(two, tmp_path):
    new = text_of(written(two, tmp_path))
    for one in two:
        file = one / "metrics.jsonl"
        file.write_text(file.read_text().replace("tokens/source/", "tokens/"))
    old = text_of(written(two, tmp_path))
    assert "chinese 15.4k · 75 %" in old
    assert re.sub("page made [^·]*", "", old) == re.sub("page made [^·]*", "", new)


def test_the_page_fetches_nothing_and_runs_nothing(two, tmp_path):
    page = written(two, tmp_path)
    assert not re.search(
        r"https?:|//[a-z]|<script|<link|<img|\bsrc=|url\(|@import|javascript:|\bon\w+=", page
    )


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_whatever_runs_are_called(tmp_path):
    hostile = run(tmp_path / "<b>&'\"复述", overrides=['phases.0.name="<i>&"'])
    (hostile / "lineage.jsonl").write_text(
        json.dumps(
            {"time": "2024-05-06T07:08:09+00:00", "kind": "new_phase", "reason": "<script>alert(1)</script>"}
        )
        + "\n"
    )
    page = written([hostile, run(tmp_path / "b", upstream=None)], tmp_path)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page
    assert "new phase" in page
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 8
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_the_headline_needs_two_runs_and_takes_either_side(tmp_path):
    one = run(tmp_path / "one")
    assert headline(gather_runs([one])) == ""
    better = run(tmp_path / "better", upstream=(1.5, 1.5), downstream=(3.0, 1.5))
    assert headline(gather_runs([one, better])).endswith("0.500 bits per byte better.")


def test_what_began_with_random_weights_has_nothing_to_forget_and_its_own_pictures(two, tmp_path):
    scratch = ["model={tokenizer: t, init: {hidden_size: 96}}"]
    base = run(tmp_path / "base", upstream=(9.0, 1.5), downstream=(9.0, 3.0), overrides=scratch)
    assert (
        compare_runs(gather_runs([base])).splitlines()[2]
        == "base  20,480  9.0000 → 1.5000  –           9.0000 → 3.0000  +6.0000"
    )
    (of_set,) = [row for row in set_rows(gather_runs([base])) if row[1] == "upstream"]
    assert of_set == ("base", "upstream", "9.0000 → 1.5000", "–")
    page = written([base, *two], tmp_path)
    assert "base forgot" not in text_of(page)
    continued, own = page.split("Curves of what began with random weights")
    assert ">9.00<" not in continued
    assert "<b>Upstream</b>" in own
    assert "<b>Forgetting</b>" not in own
    assert "<b>The trade</b>" not in own


def test_versions_are_those_that_the_runs_were_computed_with(two, tmp_path):
    for directory, torch in zip(two, ("2.13.0", "2.14.0"), strict=True):
        entry = {"kind": "start", "versions": {"torch": torch, "deepspeed": "0.19.8"}}
        (directory / "lineage.jsonl").write_text(json.dumps(entry) + "\n")
    assert "torch 2.13.0 and 2.14.0 · deepspeed 0.19.8" in text_of(written(two, tmp_path))


def test_lineage_is_told_as_it_was_decided(two, tmp_path):
    (two[0] / "lineage.jsonl").write_text(
        '{"time": 1700000000, "kind": "start", "reason": "no checkpoint yet"}\n'
        '{"kind": "restore", "reason": "same data"}\n'
    )
    text = text_of(written(two, tmp_path))
    assert "2023-11-1" in text
    assert "start no checkpoint yet" in text
    assert "restore same data" in text
    assert "restore goes on from step 5" in text  # the other run has no lineage: its metrics tell


def test_shares_of_each_phase_are_counted_from_where_the_phase_before_ended(tmp_path):
    directory = tmp_path / "phases"
    constant = "schedule: {kind: constant, max_lr: 1e-3}"
    three = (
        f"phases=[{{name: a, tokens: 8192, mixture: {{chinese: 1}}, {constant}}},"
        f"{{name: b, tokens: 8192, mixture: {{chinese: 1/2, english: 1/2}}, {constant}}},"
        f"{{name: c, tokens: 8192, mixture: {{english: 1}}, {constant}}}]"
    )
    directory.mkdir()
    (directory / "recipe.resolved.yaml").write_text(
        dump_recipe(load_recipe(QUICKSTART, [three])), encoding="utf-8"
    )
    metrics = Metrics(
        directory, Logging(tensorboard=False), rank=0, name="x", total_tokens=1, stream=io.StringIO()
    )
    for step in range(1, 9):
        replayed = max(0, step - 4) * TOKENS // 2
        metrics.log(
            step,
            step * TOKENS,
            {source_tokens("chinese"): step * TOKENS - replayed, source_tokens("english"): replayed},
        )
    metrics.close()
    (arm,) = gather_runs([directory])
    found = [
        (phase, [(share.source, share.tokens) for share in shares]) for phase, shares in phase_shares(arm)
    ]
    assert found == [("a", [("chinese", 8192)]), ("b", [("chinese", 4096), ("english", 4096)])]
    assert arm.replay == 1.0


def test_a_phase_ends_where_the_run_recorded_it_and_not_where_the_recipe_had_it(tmp_path):
    directory = run(tmp_path / "run")
    plain = scheduler_runs.recipe(*(scheduler_runs.phase(name) for name in ("one", "two")))
    (directory / "recipe.resolved.yaml").write_text(dump_recipe(plain), encoding="utf-8")
    assert gather_runs([directory])[0].phase_ends() == [10_000, 20_000]
    state = scheduler_runs.begun(scheduler_runs.recipe())
    state = replace(state, phases=(replace(state.running, samples=1_020),))  # the batch size was changed
    line = json.dumps({"kind": "restore", "reason": "", "state": state.to_json()})
    (directory / "lineage.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert gather_runs([directory])[0].phase_ends() == [10_200, 20_200]


# -------------------------------------------------------------------------------------------------- charts


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_round_few_and_hold_the_data(low, span):
    high = low + span
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-9):
        return
    marks = ticks(low, high)
    step = (marks[-1] - marks[0]) / (len(marks) - 1)
    slack = 1e-6 * (high - low) + 1e-9 * abs(low)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-3


def test_ticks_by_hand():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1.62, 2.36) == pytest.approx([1.6, 1.8, 2.0, 2.2, 2.4])
    assert ticks(0, 409_600) == pytest.approx([0, 100_000, 200_000, 300_000, 400_000, 500_000])


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_keep_their_order_and_their_distance(wanted):
    placed = spread(sorted(wanted), 15, 0, 300)
    assert all(after - before >= 15 - 1e-9 for before, after in pairwise(placed))
    assert placed[-1] <= 300
    apart = all(
        after - before >= 15 for before, after in zip(sorted(wanted), sorted(wanted)[1:], strict=False)
    )
    if apart:
        assert placed == pytest.approx(sorted(wanted))


def picture(ys, **options):
    line = Line("a", 0, list(range(len(ys))), ys)
    return chart([line], x_format="{:g}".format, y_format="{:g}".format, **options)


def drawn(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'class="line"[^>]* d="M([^"]+)"', svg)[1]
    return [tuple(map(float, point.split())) for point in path.split("L")]


def test_a_line_lies_where_its_numbers_are():
    points = drawn(picture([0.0, 1.0, 0.5]))
    (left, bottom), (middle, top), (right, half) = points
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert half == pytest.approx((top + bottom) / 2, abs=0.1)
    assert top < bottom


def test_a_long_line_is_thinned_and_keeps_its_spike():
    ys = [1.0] * 50_000
    ys[31_234] = 9.0
    points = drawn(picture(ys))
    assert len(points) < 600
    assert min(y for _, y in points) < min(y for _, y in points[:50]) - 100


@pytest.mark.parametrize("ys", [[], [2.0], [2.0, 2.0], [0.0]])
@pytest.mark.parametrize("zero", [False, True])
def test_little_data_is_no_trouble(ys, zero):
    svg = picture(ys, zero=zero)
    assert (svg == "") == (ys == [])
    if svg:
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def test_smoothing_looks_back_only():
    assert smoothed([4.0, 2.0, 6.0, 0.0], 2) == [4.0, 3.0, 4.0, 3.0]
    assert smoothed([1.0, 5.0], 1) == [1.0, 5.0]


@pytest.mark.parametrize(
    ("value", "text"), [(3e-4, "3e-4"), (1.65e-4, "1.65e-4"), (0.003, "3e-3"), (0.0, "0"), (0.25, "2.5e-1")]
)
def test_learning_rates_are_written_as_recipes_write_them(value, text):
    assert rate(value) == text


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    arms = [run(tmp_path / "a")]
    write_report(arms, tmp_path / "page.html")
    first = (tmp_path / "page.html").read_bytes()
    write_report([*arms, run(tmp_path / "b")], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() != first
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    for name in ("mine.html", "a"):
        with pytest.raises(UserError, match=rf"--out: '.*{name}' exists and is not a page that rewarm made"):
            write_report(arms, tmp_path / name)
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>"


# ------------------------------------------------------------------------------------------------- budget


def test_a_forgetting_budget_has_pictures_of_its_own(tmp_path, two):
    assert "Forgetting budget" not in written(two, tmp_path)
    decided = {"budget": 0.02, "forgetting": 0.01, "low": 0.005, "high": 0.015, "replay_ratio": 0.25}
    extra = {f"budget/{name}": value for name, value in decided.items()}
    steered = run(tmp_path / "steered", extra={**extra, "average/eval/audit/forgetting": 0.2})
    page = written([*two, steered], tmp_path)
    assert page.count("<h2>Forgetting budget</h2>") == 1
    assert "Forgetting and its budget, steered" in page
    assert "Replay ratio, steered" in page
    assert "audit" in text_of(page)
