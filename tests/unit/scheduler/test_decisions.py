"""What does starting this recipe here mean? Every case by hand: what was saved, what is asked, the answer."""

import pytest

from tests.helpers.scheduler_runs import (
    CONSTANT,
    COSINE,
    INFINITE,
    LAW,
    LOW,
    WSD,
    data,
    phase,
    recipe,
    saved_after,
)
from trainer.scheduler.decide import decide

TWO = (phase("one"), phase("two", COSINE, mixture=LAW))
"""A cosine of 100 steps on zh and en, and another one on new data with the same replay."""


def one(schedule, **fields):
    return (phase("one", schedule, **fields),)


LONG = (phase("one"), phase("two", COSINE, mixture=LAW, seq_len=50, rope="{rope_theta: 1e6}"))
"""The second phase has samples five times as long, and a batch of two of them."""

ANNEAL = "{{from_tokens: {}, tokens: 1000, end_lr: 0}}"
LINEAR = "{kind: linear, max_lr: 3e-4}"
CLAMPED = "{kind: cosine_clamped, max_lr: 3e-4}"
SQRT = "{kind: inverse_sqrt, max_lr: 3e-4}"
STAGES = "{kind: stages, max_lr: 3e-4, stages: [{shape: linear, length: 99%, end_lr: 10%}]}"
CYCLES = "{kind: constant, max_lr: 3e-4, cycles: 2}"
SEGMENTS = "[{from: 0, zh: 1/2, en: 1/2}, {from: 8000, zh: 3/4, law: 1/4}]"
ONE_SEGMENT = "phases.0.mixture=[{from: 0, zh: 1/2, en: 1/2}]"
ANNEALED = "{kind: constant, max_lr: 3e-4, anneal: {from_tokens: 6000, tokens: 1000, end_lr: 0}}"

GOES_ON = [
    # (case, phases, steps that are trained, edits of the recipe, the decision, its phase)
    ("nothing edited", TWO, 50, [], "restore", 0),
    ("saved before the first step", TWO, 0, [], "restore", 0),
    ("one step before the end of a phase", TWO, 99, [], "restore", 0),
    ("in the middle of the second phase", TWO, 150, [], "restore", 1),
    # what is not the run's identity
    ("another micro batch", TWO, 50, ["micro_batch_size=5"], "restore", 0),
    ("another ZeRO stage, or offload", TWO, 50, ["deepspeed=ds_configs/zero3.json"], "restore", 0),
    ("a moved source", TWO, 50, ["sources.zh.path=/elsewhere/zh"], "restore", 0),
    ("a moved base", TWO, 50, ["model.base=/elsewhere/base"], "restore", 0),
    ("a moved tokenizer", TWO, 50, ["model.tokenizer=/elsewhere/t"], "restore", 0),
    ("a moved run directory", TWO, 50, ["run_dir=/elsewhere/run"], "restore", 0),
    ("another name", TWO, 50, ["name=renamed"], "restore", 0),
    ("another attention kernel", TWO, 50, ["model.attention=sdpa"], "restore", 0),
    ("recomputation", TWO, 50, ["model.activation_checkpointing=full"], "restore", 0),
    ("another cadence", TWO, 50, ["validation.every_tokens=7", "checkpoint.every_tokens=7"], "restore", 0),
    ("another log", TWO, 50, ["logging.every_steps=7"], "restore", 0),
    # what may be edited
    ("a larger batch", TWO, 50, ["global_batch_size=30"], "restore", 0),
    ("a batch that does not divide the position", TWO, 50, ["global_batch_size=7"], "restore", 0),
    ("a later phase's schedule", TWO, 50, ["phases.1.schedule.max_lr=1e-4"], "restore", 0),
    ("a later phase's budget", TWO, 50, ["phases.1.tokens=77_000"], "restore", 0),
    ("a later phase's data", TWO, 50, ["phases.1.mixture={law: 1/2, en: 1/2}"], "restore", 0),
    (
        "a default written out",
        one("{kind: wsd, max_lr: 3e-4}"),
        50,
        ["phases.0.schedule=" + WSD],
        "restore",
        0,
    ),
    ("per cent written as tokens", TWO, 50, ["phases.0.schedule.warmup=100"], "restore", 0),
    ("a later phase's seq_len", TWO, 50, ["phases.1.seq_len=50"], "restore", 0),
    ("a later phase's RoPE", TWO, 50, ["phases.1.rope={rope_theta: 1e6}"], "restore", 0),
    ("seq_len written out", TWO, 50, ["phases.0.seq_len=10"], "restore", 0),
    # a budget extended while the LR has not decayed
    ("constant, longer", one(CONSTANT), 50, ["phases.0.tokens=30_000"], "restore", 0),
    (
        "constant, longer, in its warm-up",
        one(CONSTANT, tokens=100_000),
        5,
        ["phases.0.tokens=3e6"],
        "restore",
        0,
    ),
    (
        "constant, longer, its warm-up now in tokens",
        one(CONSTANT),
        50,
        ["phases.0.tokens=30_000", "phases.0.schedule.warmup=100"],
        "restore",
        0,
    ),
    ("constant, longer, once done", one(CONSTANT), 100, ["phases.0.tokens=30_000"], "restore", 0),
    ("constant, shorter", one(CONSTANT), 50, ["phases.0.tokens=6_000"], "restore", 0),
    ("constant, ended here", one(CONSTANT), 50, ["phases.0.tokens=5_000"], "finished", 0),
    ("constant, ended before here", one(CONSTANT), 50, ["phases.0.tokens=4_000"], "finished", 0),
    ("constant, longer, an anneal ahead", one(ANNEALED), 50, ["phases.0.tokens=30_000"], "restore", 0),
    ("wsd, longer", one(WSD), 50, ["phases.0.tokens=30_000"], "restore", 0),
    ("wsd, longer, where its decay begins", one(WSD), 90, ["phases.0.tokens=30_000"], "restore", 0),
    ("wsd, shorter, its decay begins here", one(WSD), 45, ["phases.0.tokens=5_000"], "restore", 0),
    ("infinite, longer, in its cooldown", one(INFINITE), 30, ["phases.0.tokens=30_000"], "restore", 0),
    ("infinite, longer, in its constant part", one(INFINITE), 70, ["phases.0.tokens=11_000"], "restore", 0),
    (
        "infinite, longer, where its anneal begins",
        one(INFINITE),
        86,
        ["phases.0.tokens=30_000"],
        "restore",
        0,
    ),
    # an anneal from a token that is not yet reached
    ("an anneal ahead", one(CONSTANT), 50, ["phases.0.schedule.anneal=" + ANNEAL.format(6000)], "restore", 0),
    (
        "an anneal from here",
        one(CONSTANT),
        50,
        ["phases.0.schedule.anneal=" + ANNEAL.format(5000)],
        "restore",
        0,
    ),
    (
        "an anneal of a cosine",
        one(COSINE),
        50,
        ["phases.0.schedule.anneal=" + ANNEAL.format(5000)],
        "restore",
        0,
    ),
    ("an anneal moved", one(ANNEALED), 50, ["phases.0.schedule.anneal.from_tokens=8000"], "restore", 0),
    ("an anneal given up", one(ANNEALED), 50, ["phases.0.schedule.anneal=null"], "restore", 0),
    (
        "an anneal before a segment, which is kept",
        one(CONSTANT, mixture=SEGMENTS),
        50,
        ["phases.0.schedule.anneal=" + ANNEAL.format(6000)],
        "restore",
        0,
    ),
    (
        "an anneal before a segment, which is dropped",
        one(CONSTANT, mixture=SEGMENTS),
        50,
        ["phases.0.schedule.anneal=" + ANNEAL.format(6000), ONE_SEGMENT],
        "restore",
        0,
    ),
    (
        "an anneal given up, and a segment after it put in",
        one(ANNEALED, mixture=ONE_SEGMENT.partition("=")[2]),
        50,
        ["phases.0.schedule.anneal=null", f"phases.0.mixture={SEGMENTS}"],
        "restore",
        0,
    ),
    ("within an anneal", one(ANNEALED), 65, [], "restore", 0),
    # phases and the end
    ("the next phase", TWO, 100, [], "new_phase", 1),
    ("the next phase, edited in time", TWO, 100, ["phases.1.schedule.max_lr=1e-4"], "new_phase", 1),
    ("an anneal ends the phase", (*one(ANNEALED), phase("two", LOW, mixture=LAW)), 70, [], "new_phase", 1),
    ("into longer samples", LONG, 100, [], "new_phase", 1),
    ("among longer samples", LONG, 150, [], "restore", 1),
    ("among longer samples, a larger batch", LONG, 150, ["global_batch_size=15"], "restore", 1),
    ("longer samples done", LONG, 200, [], "finished", 1),
    ("all phases done", TWO, 200, [], "finished", 1),
    ("an anneal ends the run", one(ANNEALED), 70, [], "finished", 0),
    ("stop_after ahead", TWO, 50, ["stop_after=5_001"], "restore", 0),
    ("stop_after reached", TWO, 50, ["stop_after=5_000"], "finished", 0),
    ("stop_after at the end of a phase", TWO, 100, ["stop_after=10_000"], "finished", 0),
    ("stop_after in the second phase", TWO, 150, ["stop_after=15_000"], "finished", 1),
    # what is refused, and lifted
    ("weight decay, allowed", TWO, 50, ["optimizer.weight_decay=0", "allow=[settings_edited]"], "restore", 0),
    ("another dtype, allowed", TWO, 50, ["model.dtype=fp32", "allow=[settings_edited]"], "restore", 0),
]


@pytest.mark.parametrize(
    ("phases", "steps", "edits", "kind", "number"), [row[1:] for row in GOES_ON], ids=[r[0] for r in GOES_ON]
)
def test_goes_on(phases, steps, edits, kind, number):
    state = saved_after(recipe(*phases), steps)
    asked = recipe(*phases, edits=edits)
    decision = decide(asked, data(asked), state)
    assert (decision.kind, decision.phase) == (kind, number), decision.render()
    assert decision.refusals == ()
    assert decision.keep_optimizer == (kind == "restore")
    if kind == "restore":  # the LR of the next step is the one that the run would have had
        assert decision.state.next_lr == state.next_lr
        assert decision.state.samples == state.samples
        assert not decision.state.phase_done


REFUSED = [
    # (case, phases, steps that are trained, edits, what the refusal names, LR as asked or None)
    ("cosine, longer", one(COSINE), 50, ["phases.0.tokens=20_000"], "every LR of cosine depends on it", None),
    ("cosine, shorter", one(COSINE), 50, ["phases.0.tokens=9_000"], "every LR of cosine", None),
    ("cosine, longer, once done", one(COSINE), 100, ["phases.0.tokens=20_000"], "every LR of cosine", None),
    ("clamped cosine, longer", one(CLAMPED), 50, ["phases.0.tokens=20_000"], "cosine_clamped depends", None),
    ("linear, longer", one(LINEAR), 50, ["phases.0.tokens=20_000"], "linear depends on it", None),
    ("inverse_sqrt, longer", one(SQRT), 50, ["phases.0.tokens=20_000"], "inverse_sqrt depends on it", None),
    ("stages, longer", one(STAGES), 50, ["phases.0.tokens=20_000"], "stages depends on it", None),
    ("cycles, longer", one(CYCLES), 50, ["phases.0.tokens=20_000"], "constant depends on it", None),
    ("wsd, longer, in its decay", one(WSD), 91, ["phases.0.tokens=20_000"], "decayed since 9,000", 3e-4),
    ("wsd, longer, once done", one(WSD), 100, ["phases.0.tokens=20_000"], "decayed since 9,000", 3e-4),
    ("wsd, shorter than its decay", one(WSD), 50, ["phases.0.tokens=5_000"], "begun at 4,500", 3e-5),
    ("infinite, longer, in its anneal", one(INFINITE), 87, ["phases.0.tokens=20_000"], "since 8,600", None),
    (
        "infinite, cut into its cooldown",
        one(INFINITE),
        50,
        ["phases.0.tokens=6_500"],
        "is too short for",
        None,
    ),
    ("infinite, cut before here", one(INFINITE), 84, ["phases.0.tokens=9_000"], "begun at 7,740", None),
    (
        "an anneal behind",
        one(CONSTANT),
        50,
        ["phases.0.schedule.anneal=" + ANNEAL.format(4999)],
        "too late",
        None,
    ),
    (
        "an anneal edited in it",
        one(ANNEALED),
        61,
        ["phases.0.schedule.anneal.tokens=9000"],
        "had begun",
        None,
    ),
    ("an anneal given up in it", one(ANNEALED), 61, ["phases.0.schedule.anneal=null"], "had begun", 3e-4),
    ("another max_lr", TWO, 50, ["phases.0.schedule.max_lr=6e-4"], "phases.0.schedule.max_lr", None),
    ("another min_lr", TWO, 50, ["phases.0.schedule.min_lr=0"], "phases.0.schedule.min_lr", None),
    ("another warm-up", TWO, 50, ["phases.0.schedule.warmup=2%"], "phases.0.schedule.warmup", None),
    ("another kind", TWO, 50, ["phases.0.schedule=" + CONSTANT], "phases.0.schedule.kind", 3e-4),
    ("another cosine", TWO, 50, ["phases.0.schedule.kind=cosine_clamped"], "phases.0.schedule.kind", None),
    ("other stages", one(STAGES), 50, ["phases.0.schedule.stages.0.end_lr=20%"], "schedule.stages", None),
    ("a group's scale", TWO, 50, ["phases.0.schedule.lr_scale={embeddings: 2}"], "lr_scale.embeddings", None),
    (
        "schedule and budget",
        TWO,
        50,
        ["phases.0.schedule=" + CONSTANT, "phases.0.tokens=9"],
        "schedule.kind",
        None,
    ),
    ("other weights", TWO, 50, ["phases.0.mixture={zh: 1/2, en: 1/2}"], "its data was edited", None),
    ("a segment ahead dropped", one(CONSTANT, mixture=SEGMENTS), 50, [ONE_SEGMENT], "its data was", None),
    (
        "an anneal into a segment that is dropped",
        one(CONSTANT, mixture=SEGMENTS),
        50,
        ["phases.0.schedule.anneal=" + ANNEAL.format(7001), ONE_SEGMENT],
        "its data was edited",
        None,
    ),
    ("another source", TWO, 50, ["phases.0.mixture={law: 3/4, en: 1/4}"], "its data was edited", None),
    ("what is trained", TWO, 50, ["phases.0.train=embeddings"], "its train was edited", None),
    ("the name of the phase", TWO, 50, ["phases.0.name=uno"], "its name was edited", None),
    (
        "the optimizer's start",
        TWO,
        50,
        ["phases.0.keep_optimizer=true"],
        "its keep_optimizer was edited",
        None,
    ),
    ("the phase's seq_len", TWO, 50, ["phases.0.seq_len=50"], "its seq_len was edited", None),
    ("the phase's RoPE", LONG, 150, ["phases.1.rope={rope_theta: 2e6}"], "its rope was edited", None),
    ("an earlier phase's seq_len", LONG, 150, ["phases.0.seq_len=5"], "'one' (phases.0) was edited", None),
    ("an earlier phase's RoPE", LONG, 150, ["phases.0.rope={rope_theta: 2}"], "(phases.0) was edited", None),
    ("seq_len", TWO, 50, ["seq_len=20"], "seq_len was changed", None),
    ("seed", TWO, 50, ["seed=1"], "seed was changed", None),
    ("document_mask", TWO, 50, ["document_mask=causal_per_document"], "document_mask was changed", None),
    ("another base", TWO, 50, ["model.base=models/other"], "model.base was changed", None),
    (
        "random weights",
        TWO,
        50,
        ["model.base=null", "model.init={hidden_size: 8}"],
        "model.init was changed",
        None,
    ),
    ("weight decay", TWO, 50, ["optimizer.weight_decay=0"], "optimizer.weight_decay changed", None),
    ("dtype", TWO, 50, ["model.dtype=fp32"], "model.dtype changed", None),
    (
        "an earlier phase's LR",
        TWO,
        150,
        ["phases.0.schedule.max_lr=1e-4"],
        "'one' (phases.0) was edited, but it is over",
        None,
    ),
    (
        "an earlier phase's budget",
        TWO,
        150,
        ["phases.0.tokens=20_000"],
        "'one' (phases.0) was edited, but it is over",
        None,
    ),
    (
        "an earlier phase's data",
        TWO,
        150,
        ["phases.0.mixture={zh: 1, en: 0}"],
        "'one' (phases.0) was edited, but it is over",
        None,
    ),
]


@pytest.mark.parametrize(
    ("phases", "steps", "edits", "words", "lr"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(phases, steps, edits, words, lr):
    state = saved_after(recipe(*phases), steps)
    asked = recipe(*phases, edits=edits)
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse", decision.render()
    assert words in decision.reason
    assert decision.diff
    assert decision.options
    assert decision.state is state  # a refusal changes nothing
    if len(asked.phases) == len(state.phases):  # and what it shows is the run as it is
        assert decision.lr_at([state.tokens])[0]["lr"] == state.next_lr
    assert decision.next_steps() == []
    if lr is not None:
        assert decision.edited_lr == pytest.approx(lr)
        assert f"{lr:.6g} (edited recipe)" in decision.render()


def test_a_phase_that_has_begun_may_not_be_taken_out():
    state = saved_after(recipe(*TWO), 150)
    asked = recipe(TWO[0])
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse"
    assert decision.reason == "the run has begun 2 phases and the recipe has 1"
    assert "phases.1: two → (none)" in decision.render()


def test_a_phase_put_in_before_the_running_one_is_an_edit_of_both():
    state = saved_after(recipe(TWO[0]), 50)
    asked = recipe(TWO[1], TWO[0])
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse"
    assert {"phases.0.name"} <= {difference.field for difference in decision.diff}


@pytest.mark.parametrize(
    "appended",
    [phase("two", LOW), phase("two", COSINE, mixture=LAW), phase("two", "{kind: linear, max_lr: 3e-5}")],
    ids=["same data at the reached LR", "new data, re-warmed", "same data, falling from the reached LR"],
)
@pytest.mark.parametrize("steps", [40, 100])
def test_a_phase_may_be_appended_while_the_run_goes_and_after_it(appended, steps):
    state = saved_after(recipe(TWO[0]), steps)
    asked = recipe(TWO[0], appended)
    assert decide(asked, data(asked), state).kind == ("restore" if steps < 100 else "new_phase")


@pytest.mark.parametrize("steps", [None, 0, 40, 100])
def test_a_phase_that_rewarms_on_the_same_data_is_refused_before_the_run_gets_there(steps):
    """Gupta et al. 2023; told at the first start, not after a week at the end of phase one."""
    state = None if steps is None else saved_after(recipe(TWO[0]), steps)
    asked = recipe(TWO[0], phase("again", COSINE))
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse"
    assert "re-warms the LR from 3e-05 to 0.0003 on data that the weights have seen: 100%" in decision.reason
    assert "50B further tokens did not recover it" in decision.render()
    allowed = recipe(TWO[0], phase("again", COSINE), edits=["allow=[rewarm_on_same_data]"])
    lifted = decide(allowed, data(allowed), state)
    assert lifted.kind == {None: "start", 0: "restore", 40: "restore", 100: "new_phase"}[steps]
    assert lifted.lifted == ("rewarm_on_same_data",)
    assert "allowed  rewarm_on_same_data, by `allow`" in lifted.render()


def test_all_may_rewarm_on_the_data_of_an_embeddings_phase():
    staged = recipe(phase("embeddings", COSINE, train="embeddings"), phase("all", COSINE))
    assert decide(staged, data(staged), None).kind == "start"
    twice = recipe(
        phase("embeddings", COSINE, train="embeddings"), phase("again", COSINE, train="embeddings")
    )
    assert decide(twice, data(twice), None).kind == "refuse"
    rows = recipe(phase("all", COSINE), phase("rows", COSINE, train="new_rows"))
    assert decide(rows, data(rows), None).kind == "start"


def test_a_replaced_shard_under_the_same_name_is_refused():
    state = saved_after(recipe(*TWO), 50)
    decision = decide(recipe(*TWO), data(recipe(*TWO), zh="prepared again"), state)
    assert decision.kind == "refuse"
    assert "phases.0.data.sources.zh.fingerprint: zh → prepared again" in decision.render()


def test_everything_that_is_wrong_is_told_at_once():
    state = saved_after(recipe(*TWO), 50)
    asked = recipe(*TWO, edits=["seed=1", "phases.0.schedule.max_lr=1e-4", "phases.0.mixture={zh: 1, en: 0}"])
    reasons = decide(asked, data(asked), state).reason
    for part in ("seed was changed", "phases.0.schedule.max_lr", "its data was edited"):
        assert part in reasons


def test_lifting_one_refusal_lifts_no_other():
    state = saved_after(recipe(*TWO), 50)
    asked = recipe(*TWO, edits=["seed=1", "optimizer.beta2=0.9", "allow=[settings_edited]"])
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse"
    assert decision.reason == "seed was changed within a run"
