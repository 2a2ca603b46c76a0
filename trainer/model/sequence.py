"""Sequence parallelism after Ulysses (Jacobs et al. 2023, arXiv 2309.14509): a model that sees one part of
every sample.

All but the attention works on single tokens. Before the attention the ranks of a group exchange: each gives
its tokens of the others' heads and gets all tokens of its own heads; after it they exchange back. Gradients
take the same ways in reverse, so the sum over all ranks of a parameter's gradients is that of whole samples,
and the ranks stay data-parallel ranks for DeepSpeed: ZeRO shards over all of them at every stage.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainer.machine.sequence import SequenceGroup
from trainer.model.cross_entropy import cross_entropy
from trainer.model.documents import DocumentPlaces
from trainer.model.loss import CausalLM, Loss

ATTENTION = "rewarm_sequence_parallel"
"""The name under which transformers finds this attention; it makes no mask of its own for such a name."""


Window = int | None
"""Tokens that a layer looks back; None: all."""


@dataclass(frozen=True)
class WholeRows:
    """What the attention needs to know of the rows of which this rank holds a part."""

    group: SequenceGroup
    config: Any
    """The model's config with the attention implementation that computes."""
    core: Callable[..., tuple[Tensor, Any]]
    """The attention function that computes."""
    positions: Tensor | None
    """`[micro, seq]`."""
    masks: dict[Window, Tensor | None]
    """A mask of the whole rows for each window that a layer has; None where causality needs none."""


@dataclass(frozen=True)
class CoreModule:
    """What transformers' attention functions read of the layer that calls them, for this rank's heads."""

    config: Any
    num_key_value_groups: int
    layer_idx: int
    training: bool
    is_causal: bool = True


class SequencePart(CausalLM):
    """A `CausalLM` for this rank's part of every row; its losses are those of that part's targets."""

    def __init__(
        self,
        hf: Any,
        vocab_size: int,
        z_loss: float = 0.0,
        loss: Loss = cross_entropy,
        *,
        group: SequenceGroup,
    ) -> None:
        """Let `hf` attend through the ranks of `group`; its attention heads must divide among them."""
        self.core_config = copy.copy(hf.config)
        hf.config._attn_implementation = ATTENTION
        super().__init__(hf, vocab_size, z_loss, loss)
        self.group = group
        eager = sys.modules[type(hf).__module__].eager_attention_forward
        self.core = ALL_ATTENTION_FUNCTIONS.get_interface(self.core_config._attn_implementation, eager)

    def hidden(
        self, input_ids: Tensor, positions: Tensor | None = None, documents: DocumentPlaces | None = None
    ) -> Tensor:
        """Compute the last hidden state of this part, `[micro, seq / parts, hidden]`.

        Args:
            input_ids: `[micro, seq / parts]`.
            positions: `[micro, seq]`, those of the whole rows, since masks depend on all of them; or None.
            documents: not used.
        """
        rows, width = input_ids.shape
        begin = self.group.part * width
        if positions is None:
            own = torch.arange(begin, begin + width, device=input_ids.device).expand(rows, width)
        else:
            own = positions[:, begin : begin + width]
        own = own.contiguous()  # always laid out alike, so that compiled layers are compiled once
        masks = self._masks(rows, width * self.group.parts, positions)
        whole = WholeRows(self.group, self.core_config, self.core, positions, masks)
        output = self.hf.base_model(input_ids, position_ids=own, use_cache=False, whole=whole)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _masks(self, rows: int, length: int, positions: Tensor | None) -> dict[Window, Tensor | None]:
        """Make the masks of whole rows, with transformers' own rules, once for all layers."""
        weight = self.hf.get_input_embeddings().weight
        given = {
            "config": self.core_config,
            "inputs_embeds": torch.empty(rows, length, 1, dtype=weight.dtype, device=weight.device),
            "attention_mask": None,
            "past_key_values": None,
            "position_ids": positions,
        }
        window = getattr(self.core_config, "sliding_window", None)
        kinds = getattr(self.core_config, "layer_types", None) or ["sliding_attention"]
        masks: dict[Window, Tensor | None] = {}
        if window is None or "full_attention" in kinds:
            masks[None] = create_causal_mask(**given)
        if window is not None and "sliding_attention" in kinds:
            masks[window] = create_sliding_window_causal_mask(**given)
        return masks


@torch.compiler.disable  # compiled layers stop for the exchange in any case
def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    whole: WholeRows,
    sliding_window: Window = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend over whole rows for this rank's heads, as an attention function of transformers.

    Args:
        module: the attention layer.
        query: `[micro, heads, seq / parts, head_dim]`.
        key: `[micro, key_value_heads, seq / parts, head_dim]`.
        value: like `key`.
        attention_mask: not used, as it would be that of a part.
        whole: the rows.
        sliding_window: the layer's.
        position_ids: not used: those of this part.
        kwargs: what the core attention function takes beside these.

    Returns:
        `[micro, seq / parts, heads, head_dim]`, and no weights.
    """
    query, key, value = exchange_heads(whole.group, query, key, value)
    rows, heads, length, _ = query.shape
    positions, mask = whole.positions, whole.masks[sliding_window]
    if positions is not None and whole.config._attn_implementation == "flash_attention_2":
        # These kernels separate documents only within a single row.
        query, key, value = (one.transpose(0, 1).flatten(1, 2)[None] for one in (query, key, value))
        positions = positions.reshape(1, -1)
    if sliding_window is not None:
        kwargs["sliding_window"] = sliding_window
    core = CoreModule(whole.config, heads // key.shape[1], module.layer_idx, module.training)
    found, _ = whole.core(core, query, key, value, mask, position_ids=positions, **kwargs)
    return exchange_tokens(whole.group, found.reshape(rows, length, heads, -1)), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)


def exchange_heads(group: SequenceGroup, *parts: Tensor) -> tuple[Tensor, ...]:
    """Exchange `[micro, heads, seq / parts, head_dim]` for `[micro, heads / parts, seq, head_dim]` each.

    Heads of which there are fewer than ranks are sent to several ranks.
    """
    ranks = group.parts
    whole = [one.repeat_interleave(max(1, ranks // one.shape[1]), dim=1) for one in parts]
    blocks = [one.unflatten(1, (ranks, -1)) for one in whole]
    sent = torch.cat(blocks, dim=2).movedim(1, 0)  # [ranks, micro, heads / ranks of all, seq / ranks, dim]
    found = group.exchange(sent).movedim(0, 2).flatten(2, 3)
    return found.split([one.shape[2] for one in blocks], dim=1)


def exchange_tokens(group: SequenceGroup, found: Tensor) -> Tensor:
    """Exchange `[micro, seq, heads / parts, head_dim]` for `[micro, seq / parts, heads, head_dim]`."""
    sent = found.unflatten(1, (group.parts, -1)).movedim(1, 0)
    return group.exchange(sent).movedim(0, 2).flatten(2, 3)
