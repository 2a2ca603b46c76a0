"""What a phase trains: groups, decay, frozen parameters, and rows that must not move by a bit."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.model_tiny import INIT, build, recipe, tokens
from tokenization.errors import UserError
from trainer.engine.row_lr import elements_before_row
from trainer.model.trainable import parameter_groups
from trainer.recipe.schema import Phase

PIECES, OLD = 90, 70


def phase(**changes: object) -> Phase:
    written = {
        "name": "one",
        "tokens": "1e6",
        "mixture": {"a": "1"},
        "schedule": {"kind": "constant", "max_lr": "1e-2", "lr_scale": changes.pop("lr_scale", {})},
    }
    return Phase.model_validate({**written, **changes})


def extended(kind: str = "llama", **init: object):
    causal = build(recipe(**{**INIT[kind], **init}), PIECES)
    causal.hf.config.base_vocab_size = OLD
    return causal


def names(causal, group) -> set[str]:
    of = {id(parameter): name for name, parameter in causal.named_parameters()}
    return {of[id(parameter)] for parameter in group["params"]}


def train(causal, groups, steps: int = 3) -> None:
    """AdamW as the engine runs it, with decay where the groups say so."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * group["lr_scale"]
        total, _, _ = causal(
            tokens(2, 16, pieces=PIECES, seed=step), tokens(2, 16, pieces=PIECES, seed=9 + step)
        )
        (total / 32).backward()
        torch.nn.utils.clip_grad_norm_([p for p in causal.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", INIT)
def test_all_is_trained_matrices_decay_and_vectors_do_not(kind):
    causal = extended(kind)
    groups = parameter_groups(causal, phase(), 0.1)
    for group in groups:
        for name in names(causal, group):
            matrix = dict(causal.named_parameters())[name].ndim == 2
            assert group["weight_decay"] == (0.1 if matrix else 0.0), name
    assert set().union(*(names(causal, group) for group in groups)) == set(dict(causal.named_parameters()))
    assert sum(len(group["params"]) for group in groups) == len(list(causal.parameters()))
    assert all(group["params"] for group in groups), "DeepSpeed refuses an empty group"


def test_embeddings_alone():
    causal = extended()
    (group,) = parameter_groups(causal, phase(train="embeddings"), 0.1)
    assert names(causal, group) == {"hf.model.embed_tokens.weight", "hf.lm_head.weight"}
    assert group["weight_decay"] == 0.1
    assert sum(parameter.requires_grad for parameter in causal.parameters()) == 2


def test_tied_embeddings_are_one_parameter():
    causal = extended(tie_word_embeddings="true")
    (group,) = parameter_groups(causal, phase(train="embeddings"), 0.1)
    assert len(group["params"]) == 1


def test_a_later_phase_thaws_what_an_earlier_one_froze():
    causal = extended()
    parameter_groups(causal, phase(train="new_rows"), 0.1)
    parameter_groups(causal, phase(), 0.1)
    assert all(parameter.requires_grad for parameter in causal.parameters())
    before = causal.hf.lm_head.weight.detach().clone()
    train(causal, parameter_groups(causal, phase(), 0.1), steps=1)
    assert (causal.hf.lm_head.weight[:OLD] != before[:OLD]).any(dim=1).all()


def test_patterns_are_searched_in_names():
    causal = extended()
    groups = parameter_groups(causal, phase(train=[r"layers\.1\.", "lm_head"]), 0.1)
    found = set().union(*(names(causal, group) for group in groups))
    assert found == {n for n, _ in causal.named_parameters() if ".layers.1." in n or "lm_head" in n}
    assert len(found) == 10
    with pytest.raises(UserError, match=r"phases.one.train: 'layer_1' matches no parameter; names are like"):
        parameter_groups(causal, phase(train=["layer_1"]), 0.1)


def test_embeddings_have_their_share_of_the_learning_rate():
    causal = extended()
    groups = parameter_groups(causal, phase(lr_scale={"embeddings": "5"}), 0.1)
    scales = {name: group["lr_scale"] for group in groups for name in names(causal, group)}
    assert {name for name, scale in scales.items() if scale == 5.0} == {
        "hf.model.embed_tokens.weight",
        "hf.lm_head.weight",
    }
    assert set(scales.values()) == {5.0, 1.0}


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("tied", ["false", "true"])
def test_new_rows_move_and_no_other_weight_does(kind, tied):
    causal = extended(kind, tie_word_embeddings=tied)
    before = {name: value.detach().clone() for name, value in causal.named_parameters()}
    (group,) = parameter_groups(causal, phase(train="new_rows", lr_scale={"new_rows": "2"}), 0.1)
    assert group["lr_scale"] == 2.0
    assert group["weight_decay"] == 0.0
    train(causal, [group])
    for name, value in causal.named_parameters():
        if name in names(causal, group):
            assert torch.equal(value[:OLD], before[name][:OLD]), name
            moved = (value[OLD:] != before[name][OLD:]).any(dim=1)
            assert moved.all() if "embed" not in name or tied == "true" else moved.any(), name
        else:
            assert torch.equal(value, before[name]), name


def test_an_infinite_gradient_of_an_old_row_does_not_reach_it():
    causal = extended()
    parameter_groups(causal, phase(train="new_rows"), 0.1)
    weight = causal.hf.lm_head.weight
    (weight * torch.tensor(float("inf"))).sum().backward()
    assert not weight.grad[:OLD].any()
    assert weight.grad[OLD:].isinf().all()


def test_new_rows_beside_the_rest_are_stretched_against_their_group():
    causal = extended()
    groups = parameter_groups(causal, phase(lr_scale={"embeddings": "2", "new_rows": "5"}), 0.1)
    (holder,) = [group for group in groups if group["name"] == "embeddings"]
    assert (holder["lr_scale"], holder["first_new_row"], holder["new_row_factor"]) == (2.0, OLD, 2.5)
    assert all("first_new_row" not in group for group in groups if group is not holder)


def test_a_factor_on_what_is_not_trained_is_refused():
    mine = phase(train=["layers"], lr_scale={"new_rows": "5"})
    with pytest.raises(UserError, match=r"lr_scale: scales the LR of embeddings that the phase does not"):
        parameter_groups(extended(), mine, 0.1)


@pytest.mark.parametrize("start", [0, 30, 70 * 4, 71 * 4 + 3, 90 * 4])
def test_the_part_of_a_fragment_that_belongs_to_the_last_rows(start):
    whole = torch.arange(90 * 4)
    part = whole[start:][elements_before_row(70, start, (90, 4)) :]
    assert part.tolist() == list(range(max(start, 280), 360))


def test_new_rows_of_a_model_that_has_none():
    causal = build(recipe(), PIECES)
    with pytest.raises(UserError, match="the model was not extended with `rewarm model extend`"):
        parameter_groups(causal, phase(train="new_rows"), 0.1)
