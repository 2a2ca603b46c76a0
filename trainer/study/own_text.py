"""What the base writes itself for the study `self_replay`, before its arms are planned."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path

from tokenization.errors import RewarmError, UserError
from trainer.machine.log_lines import logger
from trainer.model.generate import write_corpus
from trainer.recipe.schema import Recipe
from trainer.study.grids import OWN_SHARE

MARGIN = Fraction(102, 100)
"""More than the arm takes, so that none of it comes twice."""


def own_text_prefix(out: Path) -> Path:
    """Return the prefix of the shards in a study's directory."""
    return out / "generated" / "own-text"


def write_own_text(recipe: Recipe, out: Path, ranks: int) -> None:
    """Let the recipe's base write what the arm `self-replay` takes; shards that are there stay.

    Raises:
        UserError: the recipe has no base, the base cannot be sampled, or other shards are there.
        RewarmError: the ranks ended with a failure; the same command goes on from there.
    """
    if recipe.model.base is None:
        fix = "train the base as a run of its own, and name its export"
        raise UserError("is missing: the base writes its own replay", field="model.base", fix=fix)
    last = len(recipe.phases) - 1
    tokens = ceil(OWN_SHARE * recipe.phases[-1].tokens * MARGIN) + 2 * recipe.seq_len_of(last)
    prefix = own_text_prefix(out)
    logger.info(f"{prefix}: {tokens:,} tokens that {recipe.model.base} writes")
    meta, status = write_corpus(str(recipe.model.base), prefix, tokens, ranks, seed=recipe.seed)
    if meta is None:
        raise RewarmError(f"{prefix}: the ranks that write it ended with status {status}")
