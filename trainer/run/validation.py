"""The validation sets of a phase, and forgetting: what upstream lost since the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from tokenization.shards.store import TokenStore
from trainer.evaluation.held_out import Baseline, Scorer, evaluate, measured_on
from trainer.machine import collectives
from trainer.machine.ranks import World
from trainer.metrics import names
from trainer.recipe.schema import Recipe


@dataclass
class ValidationSets:
    """Scores the validation sets with the model as it stands."""

    scorer: Scorer
    stores: Mapping[str, TokenStore]
    """`upstream`, `downstream`."""
    recipe: Recipe
    micro_batch_size: int
    world: World
    baseline: dict[str, Baseline] = field(default_factory=dict)
    """The base's score on each validation set that was measured before the first step."""
    total: Callable[[torch.Tensor], torch.Tensor] = collectives.all_reduce_sum
    """Adds up over the ranks."""

    def measure(self, step: int) -> dict[str, float]:
        """The metrics of all sets after `step` steps; those of step 0 become the baseline."""
        seq_len, max_tokens = self.recipe.seq_len, self.recipe.validation.max_tokens
        found = {}
        for name, store in self.stores.items():
            score = evaluate(
                self.scorer,
                store,
                seq_len=seq_len,
                micro_batch_size=self.micro_batch_size,
                max_tokens=max_tokens,
                document_mask=self.recipe.document_mask,
                rank=self.world.rank,
                world_size=self.world.world_size,
                total=self.total,
            )
            now = measured_on(store, seq_len, max_tokens, self.recipe.document_mask)
            if step == 0:
                self.baseline[name] = Baseline(score.bits_per_byte, now)
            base = self.baseline.get(name)
            found[names.stream_bits_per_byte(name)] = score.bits_per_byte
            found[names.stream_nats_per_token(name)] = score.nats_per_token
            if name == "upstream" and base is not None and not base.unlike(now):
                found[names.FORGETTING] = score.bits_per_byte - base.bits_per_byte
        return found
