"""What a schedule may not say: each complaint is a line that names the field, the value and the fix."""

import pytest

from tests.helpers.scheduler_runs import phase, recipe
from tokenization.errors import UserErrors
from trainer.recipe import load
from trainer.recipe.numbers import Level

WRONG = [
    (
        "{kind: cosine, max_lr: 1e-4, decay: 10%}",
        "decay has no effect on kind cosine; remove it, or use kind wsd",
    ),
    ("{kind: constant, max_lr: 1e-4, min_lr: 1e-5}", "min_lr has no effect on kind constant"),
    ("{kind: wsd, max_lr: 1e-4, cooldown: 5%}", "cooldown has no effect on kind wsd"),
    ("{kind: linear, max_lr: 1e-4, constant_lr: 1e-5}", "constant_lr has no effect on kind linear"),
    (
        "{kind: cosine, max_lr: 1e-4, stages: [{shape: constant, length: 99%}]}",
        "stages has no effect on kind cosine",
    ),
    ("{kind: infinite, max_lr: 1e-4, decay_shape: linear}", "decay_shape has no effect on kind infinite"),
    ("{kind: cosine, max_lr: 1e-4, min_lr: 2e-4}", "min_lr 0.0002 is above max_lr 0.0001"),
    ("{kind: cosine, max_lr: 1e-4, start_lr: 2e-4}", "start_lr 0.0002 is above max_lr 0.0001"),
    (
        "{kind: cosine, max_lr: 1e-4, start_lr: 1e-5, warmup: 0}",
        "start_lr 1e-05 has no effect without a warm-up",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, start_lr: reached, warmup: 0}",
        "start_lr reached has no effect without a warm-up",
    ),
    (
        "{kind: infinite, max_lr: 1e-4, constant_lr: 1e-6}",
        "constant_lr 1e-06 is not between min_lr 1e-05 and max_lr",
    ),
    ("{kind: infinite, max_lr: 1e-4, constant_lr: 1e-3}", "constant_lr 0.001 is not between"),
    (
        "{kind: infinite, max_lr: 1e-4, min_lr: 0}",
        "kind infinite falls exponentially and never reaches min_lr 0",
    ),
    (
        "{kind: wsd, max_lr: 1e-4, min_lr: 0, decay_shape: exponential}",
        "kind wsd falls exponentially and never",
    ),
    ("{kind: cosine, max_lr: 0}", "greater than 0"),
    (
        "{kind: cosine, max_lr: 1e-4, warmup: 20_000}",
        "warmup 20000 = 20000 tokens do not fit into the phase's 10000",
    ),
    (
        "{kind: wsd, max_lr: 1e-4, warmup: 50%, decay: 6_000}",
        "warmup 5000 + decay 6000 = 11000 tokens do not fit",
    ),
    (
        "{kind: infinite, max_lr: 1e-4, constant: 40%}",
        "warmup 100 + cooldown 6000 + constant 4000 = 10100 tokens do",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, cycles: 3, warmup: 4000}",
        "fit into the cycle (a phase of 10000 in 3 cycles)'s 3333.3",
    ),
    ("{kind: stages, max_lr: 1e-4}", "kind stages needs a list of stages"),
    (
        "{kind: stages, max_lr: 1e-4, stages: [{shape: constant, length: 98%}]}",
        "do not add up to the phase's 10000; 100 are",
    ),
    (
        "{kind: stages, max_lr: 1e-4, stages: [{shape: constant, length: 100%}]}",
        "= 10100 tokens do not fit into the phase",
    ),
    (
        "{kind: stages, max_lr: 1e-4, stages: [{shape: linear, length: 99%}]}",
        "a linear stage needs an end_lr",
    ),
    (
        "{kind: stages, max_lr: 1e-4, stages: [{shape: constant, length: 99%, end_lr: 1}]}",
        "end_lr has no effect on a constant",
    ),
    (
        "{kind: stages, max_lr: 1e-4, stages: [{shape: exponential, length: 99%, end_lr: 0}]}",
        "exponential stage never",
    ),
    (
        "{kind: stages, max_lr: 1e-4, stages: [{shape: linear, length: 99%, end_lr: 200%}]}",
        "end_lr 0.0002 is above max_lr",
    ),
    ("{kind: stages, max_lr: 1e-4, stages: [{shape: linear, length: 99%, end_lr: -1}]}", "'-1' is negative"),
    (
        "{kind: cosine, max_lr: 1e-4, anneal: {from_tokens: 10_001, tokens: 1, end_lr: 0}}",
        "anneal.from_tokens 10001 is beyond",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, anneal: {from_tokens: 1, tokens: 1, end_lr: 1}}",
        "anneal.end_lr 1.0 is above max_lr",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, anneal: {from_tokens: 1, tokens: 1, end_lr: 0, shape: exponential}}",
        "an exponential anneal never reaches end_lr 0",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, lr_scale: {embedings: 2}}",
        "'embedings' is not a parameter group; did you mean",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, lr_scale: {x: 2}}",
        "'x' is not a parameter group; groups are embeddings, new_rows",
    ),
    (
        "{kind: cosine, max_lr: 1e-4, warm_up: 1%}",
        "phases.0.schedule.warm_up: is not a known field; did you mean 'warmup'?",
    ),
    ("{kind: cosin, max_lr: 1e-4}", "phases.0.schedule.kind"),
]


@pytest.mark.parametrize(("schedule", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_schedule_that_cannot_mean_what_it_says_is_told(schedule, words):
    with pytest.raises(UserErrors) as raised:
        recipe(phase("x", schedule))
    lines = str(raised.value).splitlines()
    assert any(words in line for line in lines), lines
    assert all(line.startswith("recipe: phases.0") for line in lines)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(UserErrors) as raised:
        recipe(
            phase("x", "{kind: constant, max_lr: 1e-4, min_lr: 2e-4, decay: 3%, lr_scale: {x: 1}}"),
            phase("y", "{kind: stages, max_lr: 1e-4}"),
            phase("z", "{kind: cosine, max_lr: 1e-4, warmup: 20e9}"),
        )
    told = str(raised.value)
    assert len(told.splitlines()) == 6
    for words in (
        "min_lr has no effect",
        "decay has no effect",
        "'x' is not a",
        "needs a list",
        "do not fit into",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mixture={replay_ratio: 1%}", "mixture: is not a known field; it belongs into phases[]"),
        ("max_lr=1e-4", "max_lr: is not a known field; it belongs into phases[].schedule"),
        ("replay_ratio=1%", "replay_ratio: is not a known field; it belongs into phases[].mixture[]"),
        ("model.micro_batch_size=4", "is not a known field; it belongs into the top level"),
        ("base=x", "base: is not a known field; it belongs into model"),
        ("seq_lem=4", "seq_lem: is not a known field; did you mean 'seq_len'?"),
        ("phases.0.path=x", "phases.0.path: is not a known field"),
    ],
)
def test_a_field_in_the_wrong_place_is_told_where_it_belongs(override, words):
    with pytest.raises(UserErrors) as raised:
        load.parse_recipe(load.dump_recipe(recipe(phase("x", "{kind: constant, max_lr: 1e-4}"))), [override])
    assert words in str(raised.value)


def test_a_group_that_is_not_trained_has_no_lr_to_scale():
    with pytest.raises(
        UserErrors, match=r"lr_scale\.embeddings has no effect where only new_rows are trained"
    ):
        recipe(phase("x", "{kind: constant, max_lr: 1e-4, lr_scale: {embeddings: 2}}", train="new_rows"))


@pytest.mark.parametrize(
    "schedule",
    [
        "{kind: cosine, max_lr: 3e-4, warmup: 12.3456789%, cycles: 3}",
        "{kind: infinite, max_lr: 3e-4, cooldown: 1/3, cooldown_shape: inverse_sqrt}",
        "{kind: wsd, max_lr: 7.3e-5, decay: 2_000, start_lr: reached, lr_scale: {new_rows: 2.5}}",
        "{kind: constant, max_lr: 1e-4, warmup: 0, anneal: {from_tokens: 5e3, tokens: 2e3, end_lr: 1e-6}}",
        "{kind: stages, max_lr: 1e-4, stages: [{shape: constant, length: 39%}, "
        "{shape: linear, length: 3_000, end_lr: 1/3}, {shape: cosine, length: 3/10, end_lr: 3e-6}]}",
    ],
)
def test_the_resolved_recipe_reads_back_to_an_equal_one(schedule):
    run = recipe(phase("x", schedule))
    assert load.parse_recipe(load.dump_recipe(run)) == run


def test_the_resolved_recipe_says_the_defaults_that_depend_on_others():
    schedule = recipe(phase("x", "{kind: infinite, max_lr: 3e-4}")).phases[0].schedule
    assert (schedule.min_lr, schedule.constant_lr, schedule.cooldown_shape) == (3e-5, 1.65e-4, "cosine")
    assert (str(schedule.cooldown), str(schedule.constant), str(schedule.warmup)) == ("60%", "25%", "1%")
    assert recipe(phase("x", "{kind: wsd, max_lr: 3e-4}")).phases[0].schedule.decay_shape == "1-sqrt"
    constant = recipe(phase("x", "{kind: constant, max_lr: 3e-4}")).phases[0].schedule
    assert constant.min_lr is constant.cooldown is constant.decay is None


def test_a_phase_ends_with_its_anneal():
    plain = recipe(phase("x", "{kind: constant, max_lr: 1e-4}", tokens=10_050))
    assert plain.phases[0].length == 10_050
    assert plain.phase_samples(0) == 1010  # 101 batches of 100 tokens, rounded up
    for start, tokens, steps in ((2_000, 500, 25), (10_050, 950, 110)):
        anneal = f"{{from_tokens: {start}, tokens: {tokens}, end_lr: 0}}"
        branch = recipe(phase("x", f"{{kind: constant, max_lr: 1e-4, anneal: {anneal}}}", tokens=10_050))
        assert branch.phases[0].length == start + tokens
        assert branch.phase_samples(0) == 10 * steps


def test_a_stages_lr_is_absolute_or_a_share_of_max_lr():
    assert Level.read("10%").lr(3e-4) == 3e-5
    assert Level.read("1/10").lr(3e-4) == 3e-5
    assert Level.read("3e-5").lr(3e-4) == 3e-5
    for written in ("10%", "1/3", "3e-5", "0"):
        assert Level.read(str(Level.read(written))) == Level.read(written)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("embedings", "'embedings' is not a group of parameters; did you mean 'embeddings'?"),
        ("mlp", "'mlp' is not a group of parameters; write all, embeddings, new_rows, or a list of patterns"),
        ("[]", "an empty list trains nothing; write all, or patterns of parameter names"),
    ],
)
def test_what_is_trained_is_named_or_matched(train, words):
    with pytest.raises(UserErrors) as raised:
        recipe(phase("x", train=train))
    assert str(raised.value) == f"recipe: phases.0.train: {words}"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("optimizer.beta1=1", "optimizer.beta1: '1' must be less than 1"),
        ("optimizer.eps=0", "optimizer.eps: '0' must be greater than 0"),
        ("seq_len=0", "seq_len: '0' must be at least 1"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last: '1' must be at least 2"),
        ("sources={}", "sources: must have at least 1 item"),
        ("sources=[]", "sources: must be a mapping"),
        ("phases=3", "phases: '3' must be a list"),
        ("phases.0=3", "phases.0: '3' must be a mapping of fields"),
        ("validation=null", "validation: is empty; leave it out, or write its fields"),
        ("name=[a]", "name: must be text"),
        ("logging.tensorboard=maybe", "logging.tensorboard: 'maybe' must be true or false"),
        ("logging.tensorboard=[]", "logging.tensorboard: must be true or false"),
        ("sources.zh.role=old", "sources.zh.role: 'old' must be 'new' or 'replay'"),
        ("micro_batch_size=0", "micro_batch_size: 0 must be at least 1 or 'auto'"),
        ("phases.0.schedule.start_lr=-1", "phases.0.schedule.start_lr: -1.0 must be at least 0 or 'reached'"),
        ("seed='{a}'", "seed: '{a}' is not a number; write it like 1e-4, 20e9, 3/4 or 1%"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_our_own_words(edit, words):
    with pytest.raises(UserErrors) as raised:
        recipe(edits=[edit])
    assert str(raised.value) == f"recipe: {words}"


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), (45, 45)]
)
def test_a_time_span_may_have_a_unit(written, seconds):
    made = recipe(edits=[f"health.hang_after={written}"])
    assert made.health.hang_after == seconds
    assert load.parse_recipe(load.dump_recipe(made)).health == made.health


@pytest.mark.parametrize("written", ["0", "-3m", "soon", "m"])
def test_a_time_span_that_is_none_is_told(written):
    with pytest.raises(UserErrors, match="hang_after"):
        recipe(edits=[f"health.hang_after={written}"])
