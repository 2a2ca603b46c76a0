"""How the decoder layers compute: compiled, and computed again in the backward pass to save memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.machine.log_lines import logger
from trainer.recipe.schema import EveryN, Model

Forward = Callable[..., Any]


def decoder_layers(hf: nn.Module) -> list[nn.Module]:
    """Return the layers of a Hugging Face model, first to last."""
    return [module for module in hf.modules() if isinstance(module, GradientCheckpointingLayer)]


def prepare_layers(hf: nn.Module, settings: Model) -> None:
    """Replace each decoder layer's forward pass, by `model.compile` and `model.activation_checkpointing`.

    Layers are compiled one by one. They have the same code, so that it is compiled once, for whatever
    surrounds it: recomputation, document masks, and ZeRO-3, which gathers a whole layer before it then.
    """
    layers = decoder_layers(hf)
    for number, layer in enumerate(layers):
        forward: Forward = layer.forward
        if settings.compile:
            forward = torch.compile(forward, dynamic=False)
        if _recomputed(number, settings.activation_checkpointing):
            offload = settings.activation_checkpointing == "offload"
            forward = partial(_recompute, forward, offload)
        layer.forward = forward
    if settings.compile:
        _name_recompilations()


def _recomputed(number: int, how: str | EveryN) -> bool:
    """Whether layer `number` keeps only its input for the backward pass."""
    if isinstance(how, EveryN):
        return number % how.every_n == 0
    return how in ("full", "offload")


def _recompute(forward: Forward, offload: bool, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute a layer, and once more in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(hidden, *args, **kwargs)
    if not offload:
        return checkpoint(forward, hidden, *args, use_reentrant=False, **kwargs)
    kept = _KeptOnHost(hidden)
    return checkpoint(lambda: forward(kept.take(), *args, **kwargs), use_reentrant=False)


class _KeptOnHost:
    """A layer's input: given out as it is the first time, then only a copy in host memory is kept."""

    def __init__(self, hidden: Tensor) -> None:
        self.device, self.trained = hidden.device, hidden.requires_grad
        self.live: Tensor | None = hidden
        self.copy: Tensor | None = None

    def take(self) -> Tensor:
        """Return the input on its device; the copies are part of the device's work, and the host goes on."""
        if self.live is not None:
            hidden, self.live = self.live, None
            pinned = self.device.type == "cuda"
            self.copy = torch.empty(hidden.shape, dtype=hidden.dtype, device="cpu", pin_memory=pinned)
            self.copy.copy_(hidden.detach(), non_blocking=True)
            return hidden
        assert self.copy is not None
        return self.copy.to(self.device, non_blocking=True).requires_grad_(self.trained)


class _Recompilations(logging.Handler):
    """Says in one line what PyTorch compiles again, and why."""

    def emit(self, record: logging.LogRecord) -> None:
        what, *reasons = record.getMessage().splitlines()
        name = re.search(r"Recompiling function (\S+)", what)
        why = "; ".join(line.strip(" -") for line in reasons[1:2])
        logger.info(f"model.compile: {name[1] if name else 'a layer'} is compiled again ({why[:200]})")


def _name_recompilations() -> None:
    torch._logging.set_logs(recompiles=True)
    source = logging.getLogger("torch._dynamo.guards.__recompiles")
    if not any(isinstance(handler, _Recompilations) for handler in source.handlers):
        source.addHandler(_Recompilations())
        source.propagate = False
