"""What each switch of `model:` brings, in a line each, with the numbers of this plan where they are known."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.plan.make import Plan
from trainer.plan.memory import Shape, loss_bytes
from trainer.plan.outlook import Outlook
from trainer.plan.presets import memory_settings
from trainer.recipe.schema import EveryN

GIB = 2**30


def switch_lines(plan: Plan, found: Outlook) -> Iterator[str]:
    """Yield a line for each switch: as it is set, what it brings, and what the other choices would."""
    recipe, micro = plan.recipe, plan.layout.micro_batch_size
    settings = memory_settings(recipe, plan.preset, plan.model_config, plan.layout.world_size, cuda=plan.cuda)
    shape = Shape.of(plan.model_config)
    loss = loss_bytes(shape, settings).total(micro)
    whole = micro * recipe.seq_len * shape.vocab * (4 + 2 * settings.width)
    yield (
        f"model.loss: {recipe.model.loss}, {loss / GIB:.2f} GiB with its gradients; all logits at once would "
        f"take {whole / GIB:.2f} GiB"
    )
    how = recipe.model.activation_checkpointing
    now = f"every_n: {how.every_n}" if isinstance(how, EveryN) else how
    peaks = ", ".join(f"{name} {memory.peak(micro) / GIB:.1f}" for name, memory in found.modes.items())
    yield (
        f"model.activation_checkpointing: {now}; peak in GiB with micro_batch_size {micro}: {peaks}; "
        "full and offload take about a third more time, every_n: 2 a sixth"
    )
    compiled = "true" if recipe.model.compile else "false"
    yield (
        f"model.compile: {compiled}; true makes steps faster (1.35x with 1B on an H200, docs/performance.md) "
        "and the first one minutes slower"
    )
    scores = micro * settings.seq_len**2 * shape.heads * (4 + settings.width) / GIB
    yield (
        f"model.attention: {recipe.model.attention}; sdpa and flash_attention_2 keep no scores, eager would "
        f"keep {scores:.1f} GiB of them per layer"
    )
    saved = 4 * shape.parameters // (plan.layout.world_size if settings.stage else 1) / GIB
    yield (
        f"optimizer.state_dtype: {recipe.optimizer.state_dtype}; bf16 spares {saved:.2f} GiB per rank "
        "and cannot be offloaded"
    )
    yield (
        f"optimizer.z_loss: {recipe.optimizer.z_loss:g}; 1e-4 keeps the output layer's logits small in long "
        "cool-downs, and 0 leaves the loss alone"
    )
    if recipe.document_mask != "none":
        mask = micro * settings.seq_len**2 * settings.width / GIB
        yield (
            f"document_mask: {mask:.2f} GiB of masks per layer with sdpa; "
            "with attention: auto a GPU needs none in 16 bits"
        )
