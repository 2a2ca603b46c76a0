"""A run that is interrupted is the run that is not: LR, samples and counters, however often and wherever.

The second half reproduces this field's bugs of LR after a resume, each under its symptom.
"""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.scheduler_runs import (
    CONSTANT,
    COSINE,
    INFINITE,
    LAW,
    STEP,
    WSD,
    begun,
    data,
    phase,
    recipe,
    trained,
)
from tokenization.errors import UserError, UserErrors
from trainer.engine.layout import layout
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.scheduler.decide import decide
from trainer.scheduler.state import RunState

STEPS = 20
"""Of each phase of the interrupted runs."""
WARM = "{kind: cosine, max_lr: 2e-4, start_lr: reached, warmup: 5%, cycles: 2}"
SIZES = {name: SourceSize(100_000, name, 1_000_001) for name in ("zh", "en", "law")}


def run_of(schedules, lengths=(10, 10, 10), **fields):
    """Phases of so many steps each, every other one on other data, with samples of so many tokens."""
    mixtures = ["{zh: 3/4, en: 1/4}", LAW]
    return recipe(
        *(
            phase(f"p{number}", one, tokens=STEPS * STEP, mixture=mixtures[number % 2], seq_len=length)
            for number, (one, length) in enumerate(zip(schedules, lengths, strict=False))
        ),
        allow="[rewarm_on_same_data]",
        **fields,
    )


class Machine:
    """A run as the loop and the run directory make it: steps, checkpoints, crashes, and `decide`."""

    def __init__(self, run):
        self.run = run
        self.saved = None
        self.trace = {}

    def train(self, stop_at=None, every=1, skip=(), world_size=1):
        """Starts on so many ranks, and trains until all is done or until a crash before step `stop_at`."""
        saved = RunState.from_json(json.loads(self.saved)) if self.saved else None
        mixture = Mixture.from_recipe(self.run, SIZES, saved.past() if saved else ())
        told = [mixture.describe(number) for number in range(len(self.run.phases))]
        decision = decide(self.run, told, saved)
        while decision.kind in ("start", "restore", "new_phase"):
            state = decision.state
            cut = layout(self.run, world_size, 2, state.phase)
            batch = cut.micro_batch_size * cut.gradient_accumulation_steps * cut.world_size
            while not state.phase_done:
                if state.step == stop_at:
                    return decision.kind
                drawn = mixture.batch(state.phase, state.samples, batch)
                lr, applied = state.next_lr, state.step not in skip
                self.trace[state.step] = (state.phase, lr, drawn.source.tolist(), drawn.index.tolist())
                state = state.after_step(batch, lr=lr, trained=applied)
                if state.step % every == 0 or state.phase_done:
                    self.saved = json.dumps(state.to_json())
            decision = decide(self.run, told, state)
        return decision.kind


@settings(max_examples=25, deadline=None)
@given(
    first=st.sampled_from([COSINE, CONSTANT, WSD, INFINITE]),
    later=st.lists(st.sampled_from([COSINE, CONSTANT, WSD, INFINITE, WARM]), max_size=2),
    crashes=st.lists(st.integers(0, 3 * STEPS), max_size=6),
    worlds=st.lists(st.sampled_from([1, 2, 5, 10]), min_size=7, max_size=7),
    every=st.integers(1, 20),
    skip=st.sets(st.integers(0, 3 * STEPS), max_size=8),
    lengths=st.just([10, 10, 10]) | st.lists(st.sampled_from([1, 5, 10]), min_size=3, max_size=3),
)
def test_any_interrupted_run_has_the_trace_of_the_uninterrupted_one(
    first, later, crashes, worlds, every, skip, lengths
):
    """LR, phase and sample ids of every step, to the bit, for any crashes, checkpoints, skipped steps, world
    sizes, and samples that are longer or shorter in a later phase."""
    schedules = [first, *later]
    whole = Machine(run_of(schedules, lengths))
    assert whole.train(skip=skip) == "finished"
    assert list(whole.trace) == list(range(STEPS * len(schedules)))
    pieces = Machine(run_of(schedules, lengths))
    for crash, world_size in zip(sorted(crashes), worlds, strict=False):
        pieces.train(stop_at=crash, every=every, skip=skip, world_size=world_size)
    assert pieces.train(every=every, skip=skip, world_size=worlds[-1]) == "finished"
    assert pieces.trace == whole.trace
    assert json.loads(pieces.saved) == json.loads(whole.saved)


@settings(max_examples=25, deadline=None)
@given(
    crashes=st.lists(st.integers(1, 3 * STEPS), max_size=5),
    batches=st.lists(st.sampled_from([5, 10, 20, 30]), min_size=6, max_size=6),
)
def test_another_batch_size_after_each_crash_leaves_the_lr_a_function_of_tokens(crashes, batches):
    machine, lr_of_token = Machine(run_of([COSINE])), {}
    whole = begun(run_of([COSINE])).running.curve
    for crash, batch in zip([*sorted(crashes), None], batches, strict=False):
        machine.run = run_of([COSINE], edits=[f"global_batch_size={batch}"])
        machine.trace = {}
        before = RunState.from_json(json.loads(machine.saved)).samples if machine.saved else 0
        machine.train(stop_at=crash)
        for number, (_, lr, _, _) in enumerate(machine.trace.values()):
            lr_of_token[(before + number * batch) * 10] = lr
    assert lr_of_token
    assert all(lr == whole(tokens) for tokens, lr in lr_of_token.items())
    end = RunState.from_json(json.loads(machine.saved))
    assert end.phase_done
    assert 0 <= end.tokens - STEPS * STEP < 300  # the budget, rounded up to whole batches


def test_a_skipped_step_uses_up_its_samples_and_holds_the_lr():
    """After an overflow: two counters, one for the data and one for the schedule."""
    state = trained(begun(recipe()), 3)
    held = state.next_lr
    skipped = state.after_step(10, lr=held, trained=False)
    assert skipped.next_lr == held
    assert (skipped.samples, skipped.tokens, skipped.step) == (40, 400, 4)
    assert (skipped.phase_trained_tokens, skipped.trained_tokens) == (300, 300)
    assert skipped.after_step(10, lr=held).next_lr == state.after_step(10, lr=held).next_lr


def test_an_extended_budget_goes_on_at_the_lr_that_it_has_and_stays_extended():
    run = recipe(phase("one", INFINITE))
    state = trained(begun(run), 70)  # in the constant part: 6,100 to 8,600
    longer = recipe(phase("one", INFINITE, tokens=20_000))
    for _ in range(2):  # and again after a crash: the second start finds nothing that changed
        decision = decide(longer, data(longer), RunState.from_json(state.to_json()))
        assert decision.kind == "restore"
        assert "stay shares of the first budget, 10,000 tokens" in decision.reason
        state = trained(decision.state, 10)
        assert state.lr == 1.65e-4
    assert decide(longer, data(longer), state).diff == ()
    assert state.running.curve(100) == 3e-4  # the warm-up and the cooldown are what they were
    assert state.running.curve.piece(6_100).name == "constant"
    assert state.running.curve.piece(17_200).name == "anneal"  # 86 % of the new budget
    assert trained(state, 110).phase_done


def test_an_anneal_added_on_the_way_ends_the_phase_from_the_lr_that_it_finds():
    state = trained(begun(recipe(phase("one", CONSTANT))), 50)
    branch = recipe(
        phase("one", CONSTANT),
        edits=["phases.0.schedule.anneal={from_tokens: 5000, tokens: 1000, end_lr: 0}"],
    )
    state = decide(branch, data(branch), state).state
    rates = []
    while not state.phase_done:
        rates.append(state.next_lr)
        state = trained(state, 1)
    assert rates == pytest.approx([3e-4 * (1 - number / 10) for number in range(10)])
    assert decide(branch, data(branch), state).kind == "finished"


def test_a_new_phase_starts_its_own_clock_and_keeps_the_runs():
    run = recipe(phase("one"), phase("two", WARM, mixture=LAW, keep_optimizer="true"))
    decision = decide(run, data(run), trained(begun(run), 100, skip={7}))
    state = decision.state
    assert decision.keep_optimizer
    assert (state.samples, state.phase_trained_tokens) == (0, 0)
    assert (state.tokens, state.trained_tokens, state.step) == (10_000, 9_900, 100)
    assert state.running.incoming_lr == state.next_lr == run_lr_at(run, 9_900)
    assert state.phase_name == "two"


def run_lr_at(run, tokens):
    return begun(run).running.curve(tokens)


# ---- what a decision shows


def test_the_lr_of_the_whole_run_is_known_before_it_starts():
    run = recipe(phase("one"), phase("two", WSD, mixture=LAW))
    decision = decide(run, data(run), None)
    assert decision.lr_at([0, 50, 100, 10_000, 10_100, 19_000, 20_000]) == [
        {"tokens": 0, "lr": 0.0},
        {"tokens": 50, "lr": pytest.approx(1.5e-4)},
        {"tokens": 100, "lr": 3e-4},
        {"tokens": 10_000, "lr": 0.0},  # the second phase warms up from 0
        {"tokens": 10_100, "lr": 3e-4},
        {"tokens": 19_000, "lr": 3e-4},
        {"tokens": 20_000, "lr": 3e-5},
    ]
    whole = decision.lr_at()
    assert {0, 100, 10_000, 10_100, 19_000, 20_000} <= {row["tokens"] for row in whole}
    assert [row["tokens"] for row in whole] == sorted({row["tokens"] for row in whole})
    with pytest.raises(UserError, match="20001 is outside the run; use 0 to 20,000 tokens"):
        decision.lr_at([20_001])


def test_the_lr_of_the_whole_run_is_the_same_from_any_checkpoint():
    run = recipe(phase("one"), phase("two", WSD, mixture=LAW))
    planned = decide(run, data(run), None).lr_at()
    for steps in (0, 37, 100):
        assert decide(run, data(run), trained(begun(run), steps)).lr_at() == planned


def test_a_refused_seq_len_leaves_the_lr_of_the_whole_run_to_be_shown():
    whole = [phase("one"), phase("two", WSD, mixture=LAW)]
    asked = recipe(*whole, edits=["seq_len=20"])
    decision = decide(asked, data(asked), trained(begun(recipe(*whole)), 50))
    assert decision.kind == "refuse"
    assert decision.lr_at()[-1]["tokens"] == decision.spans[-1].stop == 20_000


def test_after_a_skipped_step_the_lr_to_come_is_shifted_by_it():
    run = recipe(phase("one"), phase("two", CONSTANT, mixture=LAW))
    decision = decide(run, data(run), trained(begun(run), 50, skip={3}))
    assert decision.lr_at([10_050])[0]["lr"] == 1.5e-4  # the next phase has its own clock
    assert decision.lr_at([5_000])[0]["lr"] == run_lr_at(run, 4_900)
    assert decision.lr_at([4_000])[0]["lr"] == run_lr_at(run, 4_000)  # the past is not told from two integers


def test_the_next_steps_are_shown():
    run = recipe(phase("one"), phase("two", WSD, mixture=LAW))
    table = decide(run, data(run), trained(begun(run), 98)).next_steps()
    assert [(row["tokens"], row["what"]) for row in table] == [
        (9_800, "next step"),
        (9_900, ""),
        (10_000, "phase 'two' begins"),
        (20_000, "end"),
    ]


def test_the_first_steps_are_shown():
    table = decide(recipe(phase("one", WSD)), data(recipe()), None).next_steps()
    assert table == [
        {"tokens": 0, "lr": 0.0, "what": "next step"},
        {"tokens": 100, "lr": 3e-4, "what": "stable begins"},
        {"tokens": 200, "lr": 3e-4, "what": ""},
        {"tokens": 9_000, "lr": 3e-4, "what": "decay begins"},
        {"tokens": 10_000, "lr": 3e-5, "what": "end"},
    ]


def test_a_decision_is_plain_json_and_its_record_restores_the_run():
    run = recipe()
    state = trained(begun(run), 5)
    told = json.loads(json.dumps(decide(recipe(seed=1), data(run), state).to_json()))
    assert told["kind"] == "refuse"
    assert told["diff"] == [{"field": "seed", "saved": 0, "asked": 1}]
    assert told["reason"] == "seed was changed within a run"
    assert told["lr_next"] == state.next_lr
    record = json.loads(json.dumps(decide(run, data(run), state).lineage()))
    assert record["kind"] == "restore"
    assert RunState.from_json(record["state"]) == state


def test_a_state_of_another_version_or_a_damaged_one_is_told_in_a_line():
    good = begun(recipe()).to_json()
    with pytest.raises(
        UserError, match="version: 7 is not a version of the run state that this release reads"
    ):
        RunState.from_json({**good, "version": 7})
    with pytest.raises(UserError, match="damaged"):
        RunState.from_json({key: value for key, value in good.items() if key != "phases"})
    with pytest.raises(UserError, match="damaged"):
        RunState.from_json({**good, "mood": "fine"})


def test_unknown_names_in_allow_are_told_with_the_nearest_one():
    run = recipe(allow="[rewarm_on_same_date, xyz]")
    with pytest.raises(UserErrors) as raised:
        decide(run, data(run), None)
    assert str(raised.value.problems[0]) == (
        "allow: 'rewarm_on_same_date' is not the name of a warning or refusal; "
        "did you mean 'rewarm_on_same_data'?"
    )
    assert "'xyz' is not the name of a warning or refusal; known are rewarm_on_same_data" in str(raised.value)


# ---- this field's bugs, by their symptoms


def test_symptom_lr_is_constant_after_resume():
    """gpt-neox #1029, Megatron-LM #1138: the restored scheduler no longer moves."""
    state = RunState.from_json(trained(begun(recipe()), 50).to_json())
    resumed = decide(recipe(), data(recipe()), state).state
    rates = [trained(resumed, number).next_lr for number in range(50)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_symptom_lr_starts_again_from_the_beginning_after_resume():
    """DeepSpeed #4344, transformers #24656: step 0 of the schedule at step 50 of the run."""
    state = trained(begun(recipe()), 50)
    resumed = decide(recipe(), data(recipe()), RunState.from_json(state.to_json())).state
    assert resumed.next_lr == state.next_lr == run_lr_at(recipe(), 5_000)


def test_symptom_new_horizon_is_taken_with_the_old_peak():
    """Megatron-LM #1284, transformers #27710: half of the edit is taken over in silence."""
    state = trained(begun(recipe()), 50)
    asked = recipe(edits=["phases.0.tokens=20_000", "phases.0.schedule.max_lr=6e-4"])
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse"
    assert {"phases.0.tokens", "phases.0.schedule.max_lr"} <= {
        difference.field for difference in decision.diff
    }
    assert decision.edited_lr == pytest.approx(asked_lr(asked, 5_000))


def asked_lr(run, tokens):
    return begun(run).running.curve(tokens)


def test_symptom_another_peak_is_ignored_in_silence():
    """nanotron #233: the recipe's max_lr is overruled by the checkpoint's, and nobody is told."""
    state = trained(begun(recipe()), 50)
    asked = recipe(edits=["phases.0.schedule.max_lr=6e-4"])
    decision = decide(asked, data(asked), state)
    assert decision.kind == "refuse"
    assert "phases.0.schedule.max_lr: 0.0003 → 0.0006" in decision.render()


def test_symptom_a_requeued_job_warms_up_again():
    """gpt-neox's `finetune`: a flag that is right for the first start is wrong for every other one."""
    run = recipe(phase("one", COSINE, tokens=100_000))
    first = decide(run, data(run), None)
    assert first.kind == "start"
    requeued = decide(run, data(run), trained(first.state, 10))
    assert requeued.kind == "restore"
    assert requeued.keep_optimizer
    assert requeued.state.next_lr == 3e-4 > run_lr_at(run, 0)  # 1,000 tokens warm up, 1,000 are trained


def test_symptom_a_requeued_job_warms_up_again_in_the_second_phase():
    """The same, where the second phase's warm-up was meant, once."""
    run = recipe(phase("one"), phase("two", COSINE, mixture=LAW))
    second = decide(run, data(run), trained(begun(run), 100))
    requeued = decide(run, data(run), trained(second.state, 20))
    assert (requeued.kind, requeued.phase) == ("restore", 1)
    assert requeued.state.next_lr == second.state.running.curve(2_000)


def test_symptom_scheduler_is_stepped_world_size_times():
    """accelerate #1673: the LR reaches its end after 1/world_size of the run. Ranks are not in the clock."""
    machine = Machine(run_of([COSINE]))
    machine.train()
    rates = [lr for _, lr, _, _ in machine.trace.values()]
    assert len(rates) == STEPS
    assert min(rates[1:]) == rates[-1] > 3e-5  # the last step is one step before the end
    for world_size, micro in ((1, 5), (2, 1), (5, 2), (10, 1)):  # nor are micro batch and accumulation
        other = Machine(run_of([COSINE], edits=[f"micro_batch_size={micro}"]))
        other.train(world_size=world_size)
        assert other.trace == machine.trace


def test_symptom_schedule_advances_on_a_skipped_step():
    """fp16 at the start of a run: the loss scale halves, and the warm-up is over before a step was taken."""
    state = trained(begun(recipe(phase("one", COSINE, tokens=100_000))), 10, skip=range(10))
    assert state.next_lr == 0.0
    assert state.samples == 100
