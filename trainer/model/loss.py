"""The model as it is trained: token ids in, sums of cross-entropy out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.model.cross_entropy import IGNORED, cross_entropy
from trainer.model.documents import ATTENTION, DocumentPlaces
from trainer.model.packing import known_packing

Loss = Callable[..., tuple[Tensor, Tensor]]
"""`cross_entropy`, or a function with the same arguments and results."""


class CausalLM(nn.Module):
    """A Hugging Face causal language model that returns losses.

    Its parameters are those of `hf`, under the prefix `hf.`; `plain_name` removes it.
    """

    def __init__(self, hf: Any, vocab_size: int, z_loss: float = 0.0, loss: Loss = cross_entropy) -> None:
        """Wrap `hf` for a tokenizer of `vocab_size` pieces; rows beyond are padding, outside the softmax."""
        super().__init__()
        self.hf = hf
        self.vocab_size = vocab_size
        self.z_loss, self.loss = z_loss, loss
        head = hf.get_output_embeddings()
        # As the module's own forward pass, so that ZeRO-3 gathers the weight for it.
        head.forward = partial(self._score, head, head.forward)
        self.one_row = hf.config._attn_implementation == "flash_attention_2"
        """Whether rows are joined end to end: these kernels separate documents only within a single row."""
        self.by_documents = hf.config._attn_implementation == ATTENTION
        """Whether the attention takes documents in place of a mask, as `forward` does then."""
        self.gathered_whole: list[type[nn.Module]] = []
        """Kinds of module that ZeRO-3 gathers at once; hooks inside would cut compiled code into pieces."""
        self.row_hooks: list[RemovableHandle] = []
        """Hooks that keep old embedding rows unchanged (see `trainable`)."""

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        documents: DocumentPlaces | None = None,
        by_token: bool = False,
        next_at: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the cross-entropy of each row's targets, in nats.

        Args:
            input_ids: `[micro, seq]`.
            targets: `[micro, seq]`, the token that follows each input; `IGNORED` does not count.
            positions: `[micro, seq]`, or None for 0, 1, 2, …. A new document begins wherever they do not
                rise by one, and attention does not look back beyond it.
            documents: where they begin, if the model is `by_documents` and there are positions.
            by_token: whether the second result is of each token, `[micro, seq]`.
            next_at: `[micro, places]`; the results are the most likely successors of the tokens there and the
                nats of the targets there, both `[micro, places]`. The logits of these places are held.

        Returns:
            The sum over all counted targets, with z-loss (to be divided by their global number, then
            backward), the sums per row `[micro]` (detached), and the counted targets per row `[micro]`.
        """
        if next_at is not None:
            rows = torch.arange(len(input_ids), device=input_ids.device).unsqueeze(1)
            logits = self.hf.get_output_embeddings()(self.hidden(input_ids)[rows, next_at])
            logits = logits[..., : self.vocab_size].float()
            goals = targets.gather(1, next_at).unsqueeze(-1)
            nats = logits.log_softmax(dim=-1).gather(-1, goals).squeeze(-1).neg()
            return logits.argmax(dim=-1), nats
        hidden = self.hidden(input_ids, positions, documents).flatten(0, 1)
        total, nats = self.hf.get_output_embeddings()(hidden, targets.flatten())
        own = nats.view_as(targets)
        return total, own if by_token else own.sum(dim=1), (targets != IGNORED).sum(dim=1)

    def hidden(
        self, input_ids: Tensor, positions: Tensor | None = None, documents: DocumentPlaces | None = None
    ) -> Tensor:
        """Compute the last hidden state `[micro, seq, hidden]`, before the output embedding.

        transformers makes the block-diagonal mask from the positions, sliding windows included.
        """
        if self.one_row and positions is not None:
            row = self._backbone(input_ids.reshape(1, -1), positions.reshape(1, -1))
            return row.view(*input_ids.shape, -1)
        return self._backbone(input_ids, positions, documents)

    def _backbone(
        self, input_ids: Tensor, positions: Tensor | None, documents: DocumentPlaces | None = None
    ) -> Tensor:
        assert positions is None or documents is not None or not self.by_documents, "documents would be mixed"
        more = {} if documents is None else {"documents": documents}
        with known_packing(positions is not None):
            output = self.hf.base_model(input_ids, position_ids=positions, use_cache=False, **more)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _score(
        self,
        head: nn.Module,
        plain: Callable[[Tensor], Tensor],
        hidden: Tensor,
        targets: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output embedding's forward pass: losses if there are targets, else logits as ever."""
        if targets is None:
            return plain(hidden)
        weight = cast(Tensor, head.weight)
        return self.loss(hidden, weight, targets, vocab_size=self.vocab_size, z_loss=self.z_loss)


def plain_name(name: str) -> str:
    """Return a parameter's Hugging Face name, from its name in `CausalLM`."""
    return name.removeprefix("hf.")
