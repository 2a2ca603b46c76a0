"""Small runs for the scheduler's tests: recipes, what the mixer would say of them, and states."""

from trainer.mixer.description import MixtureDescription, SegmentDescription, SourceDescription
from trainer.recipe import load
from trainer.recipe.schedule import Schedule
from trainer.scheduler.decide import decide

SEQ_LEN = 10
BATCH = 10
STEP = SEQ_LEN * BATCH
"""Tokens in an optimizer step."""

COSINE = "{kind: cosine, max_lr: 3e-4, min_lr: 3e-5, warmup: 1%}"
CONSTANT = "{kind: constant, max_lr: 3e-4, warmup: 1%}"
WSD = "{kind: wsd, max_lr: 3e-4, min_lr: 3e-5, warmup: 1%, decay: 10%}"
INFINITE = "{kind: infinite, max_lr: 3e-4, min_lr: 3e-5, constant_lr: 1.65e-4, warmup: 1%}"
LOW = "{kind: constant, max_lr: 3e-5, warmup: 0}"
"""Goes on at the LR that the others end with: no re-warm."""


LAW = "{law: 3/4, en: 1/4}"
"""A mixture that is new to a run on zh and en, but for its replay."""


def schedule(**fields):
    return Schedule.model_validate(fields)


def phase(name, schedule=COSINE, *, tokens=10_000, mixture="{zh: 3/4, en: 1/4}", **fields):
    """A phase as a recipe writes it: 100 steps, unless told otherwise."""
    others = "".join(f", {key}: {value}" for key, value in fields.items())
    return f"{{name: {name}, tokens: {tokens}, mixture: {mixture}, schedule: {schedule}{others}}}"


def recipe(*phases, edits=(), **fields):
    """A run of these phases over a Chinese source and an English one to replay."""
    lines = [
        "name: run",
        "model: {base: models/base, tokenizer: t, dtype: bf16}",
        "deepspeed: ds_configs/zero2.json",
        f"seq_len: {SEQ_LEN}",
        f"global_batch_size: {BATCH}",
        "sources: {zh: {path: zh, role: new}, en: {path: en, role: replay}, law: {path: law, role: new}}",
        "validation: {every_tokens: 1000}",
        "checkpoint: {every_tokens: 1000}",
        *(f"{key}: {value}" for key, value in fields.items()),
        "phases:",
        *(f"  - {phase}" for phase in phases or [phase("one")]),
    ]
    return load.parse_recipe("\n".join(lines), edits)


def data(run, **fingerprints):
    """What the mixer says of each phase; sources' fingerprints are their names, unless told otherwise."""
    found = []
    for number, phase in enumerate(run.phases):
        length = run.seq_len_of(number)
        segments = tuple(
            SegmentDescription(
                one.start // length, {name: str(weight) for name, weight in one.weights.items()}
            )
            for one in phase.mixture
        )
        used = dict.fromkeys(name for segment in segments for name in segment.weights)
        sources = {
            name: SourceDescription(fingerprints.get(name, name), 10**6, place, "shuffled")
            for place, name in enumerate(used)
        }
        found.append(MixtureDescription(1, run.seed, length, segments, sources, {}))
    return found


def begun(run, base=None, **fingerprints):
    """The state of a run that has just started."""
    decision = decide(run, data(run, **fingerprints), None, base)
    assert decision.kind == "start", decision.render()
    return decision.state


def trained(state, steps, *, skip=()):
    """The state after so many more steps of the phase, those numbered in `skip` being skipped."""
    step = state.settings["global_batch_size"] * state.settings["seq_len"]
    batch = step // state.running.data.seq_len
    for number in range(steps):
        state = state.after_step(batch, lr=state.next_lr, trained=number not in skip)
    return state


def saved_after(run, steps):
    """The state after so many steps, through as many phases as that takes."""
    state = begun(run)
    for _ in range(steps):
        if state.phase_done:
            state = decide(run, data(run), state).state
        state = trained(state, 1)
    return state
