"""What a phase trains, and with which share of the learning rate: parameter groups for AdamW."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.errors import UserError
from trainer.recipe import Phase, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.model.loss import CausalLM

BASE_ROWS = "base_vocab_size"
"""The config field, written by `rewarm model extend`, that tells where the appended rows begin."""


def parameter_groups(model: CausalLM, phase: Phase, weight_decay: float) -> list[dict[str, Any]]:
    """Freezes what `phase` does not train, and groups the rest for an AdamW optimizer.

    Call it before `deepspeed.initialize`, at the start of each phase, on a model whose engine (if it had
    one) is gone. A group holds `params`, `weight_decay` and, for the loop, `name` and `lr_scale`: each
    step sets `group["lr"] = lr * group["lr_scale"]`. Matrices decay; norms and biases do not.

    `new_rows` must leave every other row of the embeddings as it is, to the bit. Rows share a tensor, so
    their gradient is zeroed before DeepSpeed sees it, and the group does not decay: AdamW moves a weight
    whose gradients and moments are zero by exactly 0, at every ZeRO stage. The moments must start at
    zero, so such a phase resets the optimizer.

    Raises:
        UserError: patterns that match no parameter, or no appended rows to train.
    """
    embeddings = {id(parameter) for parameter in _embeddings(model)}
    trained = _trained(model, phase, embeddings)
    _hold_old_rows(model, base_rows(model) if phase.train == "new_rows" else 0)
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name not in trained:
            continue
        kind = "embeddings" if id(parameter) in embeddings else "body"
        if phase.train == "new_rows":
            kind = "new_rows"
        decays = kind != "new_rows" and _dimensions(parameter) > 1
        decay = weight_decay if decays else 0.0
        scale = phase.schedule.lr_scale.get(kind, 1.0)
        empty = {"name": kind, "params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((kind, decay), empty)["params"].append(parameter)
    return list(groups.values())


def base_rows(model: CausalLM) -> int:
    """Rows of the embeddings that were there before `rewarm model extend`.

    Raises:
        UserError: the model was not extended.
    """
    rows = getattr(model.hf.config, BASE_ROWS, None)
    if rows is None:
        raise _not_extended("phases")
    return int(rows)


def phase_problems(recipe: Recipe, config: Mapping[str, Any]) -> list[UserError]:
    """What is wrong with the phases' `train` and `lr_scale`, as far as config.json tells."""
    problems = []
    for number, phase in enumerate(recipe.phases):
        where = f"phases.{number}"
        if "new_rows" in phase.schedule.lr_scale and phase.train != "new_rows":
            # AdamW's step does not depend on the gradient's size, and the rows share a tensor.
            field, mend = f"{where}.schedule.lr_scale.new_rows", "scale embeddings, or train: new_rows"
            problems.append(UserError("scales rows that train with the others", field=field, mend=mend))
        if phase.train == "new_rows":
            if config.get(BASE_ROWS) is None:
                problems.append(_not_extended(f"{where}.train"))
            if phase.keep_optimizer:
                mend = "leave it out"
                what = "would move old rows by the moments of the phase before, which new_rows forbids"
                problems.append(UserError(what, field=f"{where}.keep_optimizer", mend=mend))
        if isinstance(phase.train, tuple):
            problems += [found for pattern in phase.train if (found := _unreadable(pattern, where))]
    return problems


def _not_extended(field: str) -> UserError:
    what = "asks for appended rows, but the model was not grown by `rewarm model extend`"
    return UserError(what, field=field, value="new_rows", mend="extend it, or train: embeddings")


def _unreadable(pattern: str, where: str) -> UserError | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return UserError(f"is no regular expression ({error})", field=f"{where}.train", value=pattern)
    return None


def _trained(model: CausalLM, phase: Phase, embeddings: set[int]) -> set[str]:
    """Names of the parameters that `phase` trains."""
    named = dict(model.named_parameters())
    if phase.train == "all":
        return set(named)
    if isinstance(phase.train, str):
        return {name for name, parameter in named.items() if id(parameter) in embeddings}
    for pattern in phase.train:
        if not any(re.search(pattern, name) for name in named):
            some = ", ".join(list(named)[:3])
            mend = f"names are like {some}, …"
            raise UserError(
                "matches no parameter", field=f"phases.{phase.name}.train", value=pattern, mend=mend
            )
    return {name for name in named if any(re.search(pattern, name) for pattern in phase.train)}


def _embeddings(model: CausalLM) -> list[nn.Parameter]:
    """Input and output embedding; one and the same when they are tied."""
    both = [model.hf.get_input_embeddings().weight, model.hf.get_output_embeddings().weight]
    return both[:1] if both[0] is both[1] else both


def _hold_old_rows(model: CausalLM, rows: int) -> None:
    """Zeroes the gradients of the first `rows` rows of the embeddings from now on; 0 lets all train."""
    for handle in model.row_hooks:
        handle.remove()
    model.row_hooks = []

    def new_rows_only(gradient: Tensor) -> Tensor:
        # Not a product with zero: that would keep an infinity as NaN.
        kept = gradient.clone()
        kept[:rows] = 0
        return kept

    if rows:
        for parameter in _embeddings(model):
            parameter.requires_grad_(True)
            model.row_hooks.append(parameter.register_hook(new_rows_only))


def _dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter; under ZeRO-3 its own tensor is empty and flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
