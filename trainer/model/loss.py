"""The model as it is trained: token ids in, sums of cross-entropy out; the logits are made in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

IGNORED = -100
"""A target that does not count."""

CHUNK_LOGITS = 2**25
"""Logits in a chunk: 128 MiB in fp32, for any vocabulary and micro batch."""


class CausalLM(nn.Module):
    """A Hugging Face causal language model that returns losses.

    Its parameters are those of `hf`, under the prefix `hf.`; `plain_name` removes it.
    """

    def __init__(self, hf: Any, vocab_size: int) -> None:
        """Wrap `hf` for a tokenizer of `vocab_size` pieces; rows beyond are padding, outside the softmax."""
        super().__init__()
        self.hf = hf
        self.vocab_size = vocab_size
        self.one_row = hf.config._attn_implementation == "flash_attention_2"
        """Whether rows are joined end to end: these kernels separate documents only within a single row."""
        self.row_hooks: list[RemovableHandle] = []
        """Hooks that keep old embedding rows unchanged (see `trainable`)."""

    def forward(
        self, input_ids: Tensor, targets: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the cross-entropy of each row's targets, in nats.

        Args:
            input_ids: `[micro, seq]`.
            targets: `[micro, seq]`, the token that follows each input; `IGNORED` does not count.
            positions: `[micro, seq]`, or None for 0, 1, 2, …. A new document begins wherever they do not
                rise by one, and attention does not look back beyond it.

        Returns:
            The sum over all counted targets (to be divided by their global number, then backward),
            the sums per row `[micro]` (detached), and the counted targets per row `[micro]`.
        """
        nats = self._nats(self.hidden(input_ids, positions).flatten(0, 1), targets.flatten())
        rows = nats.view_as(targets).sum(dim=1)
        return rows.sum(), rows.detach(), (targets != IGNORED).sum(dim=1)

    def hidden(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the last hidden state `[micro, seq, hidden]`, before the output embedding.

        transformers makes the block-diagonal mask from the positions, sliding windows included.
        """
        if self.one_row and positions is not None:
            row = self._backbone(input_ids.reshape(1, -1), positions.reshape(1, -1))
            return row.view(*input_ids.shape, -1)
        return self._backbone(input_ids, positions)

    def _backbone(self, input_ids: Tensor, positions: Tensor | None) -> Tensor:
        output = self.hf.base_model(input_ids, position_ids=positions, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross-entropy per token `[tokens]`.

        With several chunks, the logits of each are computed again in the backward pass: a third more work
        in the output embedding, which matters only for a small model with a large vocabulary.
        """
        size = max(1, CHUNK_LOGITS // self.vocab_size)
        if len(hidden) <= size:
            return self._chunk_nats(hidden, targets)
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        return torch.cat([checkpoint(self._chunk_nats, *chunk, use_reentrant=False) for chunk in chunks])

    def _chunk_nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.hf.get_output_embeddings()(hidden)[:, : self.vocab_size].float()
        return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


def plain_name(name: str) -> str:
    """Return a parameter's Hugging Face name, from its name in `CausalLM`."""
    return name.removeprefix("hf.")
