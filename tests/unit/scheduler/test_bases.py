"""A run that starts from one of our own checkpoints: what its lineage allows."""

import re

import pytest

from tests.helpers.scheduler_runs import (
    CONSTANT,
    COSINE,
    LAW,
    LOW,
    begun,
    data,
    phase,
    recipe,
    saved_after,
    trained,
)
from trainer.scheduler.decide import decide
from trainer.scheduler.state import BaseLineage


def base_after(steps, schedule=COSINE, mixture="{zh: 3/4, en: 1/4}"):
    run = recipe(phase("one", schedule, mixture=mixture))
    return BaseLineage.of(saved_after(run, steps), "runs/base")


BASES = [
    # (case, base, the new run's only phase, the decision, what it says)
    ("no lineage", None, phase("x"), "start", "weights from models/base"),
    (
        "decayed, re-warm, same data",
        base_after(100),
        phase("x"),
        "refuse",
        "100% of its mixture is the base's",
    ),
    ("half decayed, re-warm, same data", base_after(50), phase("x"), "refuse", "from 0.000167 to 0.0003"),
    ("decayed, no re-warm, same data", base_after(100), phase("x", LOW), "start", "LR 3e-05"),
    ("not decayed, same data", base_after(50, CONSTANT), phase("x"), "start", "weights from runs/base"),
    ("decayed, re-warm, other data", base_after(100), phase("x", mixture="{law: 1}"), "start", "no replay"),
    (
        "87 % the same",
        base_after(100),
        phase("x", mixture="{zh: 87%, law: 13%}"),
        "refuse",
        "87% of its mixture",
    ),
    (
        "51 % the same",
        base_after(100),
        phase("x", mixture="{en: 51%, law: 49%}"),
        "refuse",
        "51% of its mixture",
    ),
    ("50 % replay", base_after(100), phase("x", mixture="{en: 1/2, law: 1/2}"), "start", "LR 0"),
    (
        "30 % the same, not declared",
        base_after(100),
        phase("x", mixture="{zh: 30%, law: 70%}"),
        "start",
        "30% of",
    ),
    (
        "a trace of 2 % in the base",
        base_after(100, mixture="{zh: 2%, en: 98%}"),
        phase("x"),
        "start",
        "weights from runs/base",
    ),
    (
        "reached, known",
        base_after(100),
        phase("x", "{kind: constant, max_lr: 3e-4, start_lr: reached}", mixture=LAW),
        "start",
        "LR 3e-05",
    ),
    (
        "reached, unknown",
        None,
        phase("x", "{kind: constant, max_lr: 3e-4, start_lr: reached}"),
        "refuse",
        "its last LR is not known",
    ),
    (
        "the base's optimizer",
        base_after(100),
        phase("x", mixture=LAW, keep_optimizer="true"),
        "start",
        "weights from runs/base",
    ),
    (
        "no optimizer to keep",
        None,
        phase("x", keep_optimizer="true"),
        "refuse",
        "the optimizer state to keep is missing",
    ),
    (
        "an export's optimizer",
        BaseLineage.of(saved_after(recipe(phase("one", CONSTANT)), 9), "export", optimizer=False),
        phase("x", CONSTANT, keep_optimizer="true"),
        "refuse",
        "the optimizer state to keep is missing",
    ),
    ("new rows on the same data", base_after(100), phase("x", train="new_rows"), "start", "LR 0"),
]


@pytest.mark.parametrize(
    ("base", "phase", "kind", "words"), [row[1:] for row in BASES], ids=[r[0] for r in BASES]
)
def test_started_from_a_base(base, phase, kind, words):
    asked = recipe(phase)
    decision = decide(asked, data(asked), None, base)
    assert decision.kind == kind, decision.render()
    assert words in decision.render()
    assert decision.keep_optimizer == asked.phases[0].keep_optimizer
    assert decision.state.step == decision.state.tokens == 0
    assert decision.diff == ()


@pytest.mark.parametrize("steps", range(2, 100, 7))
def test_the_advised_learning_rate_is_accepted(steps):
    base = base_after(steps)
    refused = decide(recipe(phase("x")), data(recipe(phase("x"))), None, base)
    advised = re.search(r"max_lr=(\S+), the last LR", " ".join(refused.options))[1]
    taken = recipe(phase("x", f"{{kind: constant, max_lr: {advised}, warmup: 0}}"))
    assert decide(taken, data(taken), None, base).kind == "start"
    assert float(advised) == pytest.approx(base.lr, rel=0.01)


def test_the_base_of_a_base_is_remembered():
    first = base_after(100)
    second = recipe(phase("law", COSINE, mixture="{law: 1}"))
    lineage = BaseLineage.of(trained(begun(second, first), 100), "runs/second")
    assert lineage.seen == {"zh": 7500, "en": 2500, "law": 10_000}
    third = recipe(phase("again", COSINE))
    assert decide(third, data(third), None, lineage).kind == "refuse"


def test_a_base_of_trained_embeddings_has_not_seen_the_data():
    run = recipe(phase("embeddings", COSINE, train="embeddings"))
    lineage = BaseLineage.of(saved_after(run, 100), "runs/embeddings")
    assert lineage.seen == {}
    assert decide(recipe(), data(recipe()), None, lineage).kind == "start"


def test_a_base_taken_in_the_middle_of_its_phase_has_seen_half_of_it():
    assert base_after(50).seen == {"zh": 3750, "en": 1250}


def test_data_is_known_by_what_it_holds_and_not_by_name_or_place():
    asked = recipe(phase("x", mixture="{law: 3/4, en: 1/4}"))
    assert decide(asked, data(asked, law="zh"), None, base_after(100)).kind == "refuse"
    same = recipe(phase("x"))
    assert decide(same, data(same, zh="prepared again", en="too"), None, base_after(100)).kind == "start"
