"""Choose what a phase trains, and each part's factor on the learning rate: parameter groups for AdamW."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainer.model.loss import CausalLM
from trainer.model.trained import BASE_ROWS, not_extended, trained_names
from trainer.recipe.schema import Phase


def parameter_groups(model: CausalLM, phase: Phase, weight_decay: float) -> list[dict[str, Any]]:
    """Freeze what `phase` does not train, and group the rest for an AdamW optimizer.

    Call it at the start of each phase, before `deepspeed.initialize`. A group holds `params`,
    `weight_decay` and, for the engine, `name` and `lr_scale`: each step sets
    `group["lr"] = lr * group["lr_scale"]`. Matrices decay; norms and biases do not. If `lr_scale.new_rows`
    is set, the group of the embeddings holds `first_new_row`, and `new_row_factor`, by which the updates of
    the appended rows are scaled.

    `train: new_rows` must not change any bit of the other rows of the embeddings. All rows share a tensor,
    so the gradient of the old rows is zeroed before DeepSpeed sees it, and the group does not decay: AdamW
    moves a weight whose gradients and moments are zero by exactly 0, at every ZeRO stage. The moments must
    start at zero, so such a phase resets the optimizer.

    Raises:
        UserError: a pattern matches no parameter, there are no appended rows to train, or `lr_scale` names
            parameters that the phase does not train.
    """
    embeddings = {id(parameter) for parameter in _embeddings(model)}
    named = {name: id(parameter) in embeddings for name, parameter in model.named_parameters()}
    trained = trained_names(named, phase)
    scales = phase.schedule.lr_scale
    _freeze_old_rows(model, base_rows(model) if phase.train == "new_rows" else 0)
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
        empty = {"name": kind, "params": [], "weight_decay": decay, "lr_scale": scales.get(kind, 1.0)}
        groups.setdefault((kind, decay), empty)["params"].append(parameter)
    made = list(groups.values())
    holders = [group for group in made if group["name"] != "body"]
    if "new_rows" in scales and phase.train != "new_rows":
        for group in holders:
            group["first_new_row"] = base_rows(model)
            group["new_row_factor"] = scales["new_rows"] / group["lr_scale"]
    return made


def base_rows(model: CausalLM) -> int:
    """Return how many rows the embeddings had before `rewarm model extend`.

    Raises:
        UserError: the model was not extended.
    """
    rows = getattr(model.hf.config, BASE_ROWS, None)
    if rows is None:
        raise not_extended("phases")
    return int(rows)


def _embeddings(model: CausalLM) -> list[nn.Parameter]:
    """Return input and output embedding; only one if they are tied."""
    both = [model.hf.get_input_embeddings().weight, model.hf.get_output_embeddings().weight]
    return both[:1] if both[0] is both[1] else both


def _freeze_old_rows(model: CausalLM, rows: int) -> None:
    """Zero the gradients of the first `rows` rows of the embeddings from now on; with 0 all rows train."""
    for handle in model.row_hooks:
        handle.remove()
    model.row_hooks = []

    def new_rows_only(gradient: Tensor) -> Tensor:
        # A product with zero would turn an infinity into NaN.
        kept = gradient.clone()
        kept[:rows] = 0
        return kept

    if rows:
        for parameter in _embeddings(model):
            parameter.requires_grad_(True)
            model.row_hooks.append(parameter.register_hook(new_rows_only))


def _dimensions(parameter: nn.Parameter) -> int:
    """Count the dimensions of the whole parameter; under ZeRO-3 its own tensor is empty and flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
