"""Right: our engine computes what a plain PyTorch loop computes on the same device."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.models import Rows, Size, build, engine, recipe, rows, whole
from benchmarks.gpu.rows import Options, options, row, trial
from trainer.engine.plain import PlainRun, plain_loss, train_plainly
from trainer.machine import collectives
from trainer.machine.ranks import World
from trainer.mixer.batch import document_bounds
from trainer.model import cross_entropy
from trainer.model import documents as packed

CARD = Size(hidden=256, layers=4, heads=8, vocab=2000, seq_len=256, batch=8)
TOY = Size(hidden=32, layers=2, heads=4, vocab=90, seq_len=32, batch=8)

STEPS, LR, TOLERANCE = 6, 1e-3, 1e-5
STAGES = (0, 1, 2, 3)
WELL_CONDITIONED = "optimizer.eps=1e-4"
"""AdamW divides by the root of the second moment plus eps. With the usual 1e-8, elements whose gradient is
rounding noise move by a whole learning rate either way, and no two orders of summation agree."""


def small(cpu: bool) -> Size:
    """The model that parity is tried on."""
    return TOY if cpu else CARD


# -- a plain loop ------------------------------------------------------------------------------


def plain_loop(size: Size, device: torch.device, frozen: tuple[str, ...] = ()) -> PlainRun:
    """Train six steps with nothing of ours but the first weights: losses, norms and end weights."""
    made = recipe(size, "fp32", WELL_CONDITIONED)
    causal = build(made, size.vocab).to(device)
    for name, parameter in causal.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    return train_plainly(causal, [rows(size, step) for step in range(STEPS)], made.optimizer, LR)


def our_loop(size: Size, zero: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Train the same under our engine, in two micro batches."""
    made = recipe(size, "fp32", WELL_CONDITIONED, *overrides)
    losses, norms = [], []
    with engine(made, size, zero, size.batch // 2) as (causal, under):
        before = whole(causal)
        for step in range(STEPS):
            micros = rows(size, step).split(size.batch // 2)
            result = under.train_step(micros, LR, sources=1, seed=step, stop=False)
            losses.append(float(result.source_nats[0] / result.source_targets[0]))
            norms.append(result.grad_norm)
        return {"losses": losses, "norms": norms, "weights": whole(causal), "before": before}


def compare(name: str, ours: dict[str, Any], plain: PlainRun) -> None:
    """Write the largest differences of losses, norms (relative) and end weights (absolute)."""

    def relative(kind: str) -> float:
        pairs = zip(ours[kind], getattr(plain, kind), strict=True)
        return max(abs(one - other) / abs(other) for one, other in pairs)

    assert ours["weights"].keys() == plain.weights.keys()
    apart = max(float((ours["weights"][key] - value).abs().max()) for key, value in plain.weights.items())
    found = {"losses": relative("losses"), "norms": relative("norms"), "weights": apart}
    note = ", ".join(f"{kind} {value:.1e}" for kind, value in found.items())
    row(name, ok=max(found.values()) < TOLERANCE, value=max(found.values()), note=f"{note}; {STEPS} steps")


def parity(size: Size, device: torch.device) -> None:
    """Compare every ZeRO stage in fp32 with the plain loop."""
    plain = plain_loop(size, device)
    for stage in STAGES:
        with trial(f"fp32, ZeRO-{stage} against a plain loop"):
            compare(f"fp32, ZeRO-{stage} against a plain loop", our_loop(size, {"stage": stage}), plain)


# -- parts of the model that stay as they are -----------------------------------------------------


def frozen(size: Size, device: torch.device, cpu: bool) -> None:
    """Train all but the embeddings: those stay to the bit, and the rest is that of a plain loop."""
    names = ("embed_tokens", "lm_head")
    plain = plain_loop(size, device, names)
    body = "phases.0.train=['layers', 'norm']"
    for stage in (2, 3) if cpu else STAGES:
        name = f"frozen embeddings, ZeRO-{stage}"
        with trial(name):
            ours = our_loop(size, {"stage": stage}, body)
            held = [key for key in ours["weights"] if any(part in key for part in names)]
            if all(torch.equal(ours["weights"][key], ours["before"][key]) for key in held) and held:
                compare(name, ours, plain)
            else:
                row(name, ok=False, note="the embeddings moved")


def new_rows(size: Size, cpu: bool) -> None:
    """Train only appended rows: they move, and no other weight does by a bit."""
    old = size.vocab * 3 // 4
    every = [*(("fp32", stage) for stage in STAGES), *(("bf16", stage) for stage in STAGES[1:])]
    for dtype, stage in [("fp32", 0), ("bf16", 2), ("fp32", 3)] if cpu else every:
        name = f"train: new_rows, {dtype}, ZeRO-{stage}"
        with trial(name):
            made = recipe(size, dtype)
            with engine(made, size, {"stage": stage}, size.batch // 2, new_rows_from=old) as (causal, under):
                before = whole(causal)
                for step in range(3):
                    under.train_step(rows(size, step).split(size.batch // 2), LR, 1, step, False)
                wrong = moved_wrongly(before, whole(causal), old)
            row(name, ok=not wrong, note=", ".join(wrong[:3]))


def moved_wrongly(before: dict[str, Tensor], after: dict[str, Tensor], old: int) -> list[str]:
    """What moved and should not have, or the other way round."""
    wrong = []
    for name, value in after.items():
        embedding = "embed_tokens" in name or "lm_head" in name
        keep = slice(0, old) if embedding else slice(None)
        if not torch.equal(value[keep], before[name][keep]):
            wrong.append(f"{name}: what is frozen moved")
        if embedding and bool((value[old:] == before[name][old:]).all()):
            wrong.append(f"{name}: new rows did not move")
    return wrong


# -- bf16 ----------------------------------------------------------------------------------------


def gradients(under: Any) -> dict[str, Tensor]:
    """What the first step saw: AdamW's first average is `(1 - beta1)` times the gradient."""
    share = 1 - under._state.adam.defaults["betas"][0]
    return {part.name: part.tensors["exp_avg"].detach().double().cpu() / share for part in under.fragments()}


def distance(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The gradient error's norm, relative to the gradient's."""
    assert ours.keys() == exact.keys()
    apart = sum(float((ours[name] - value).square().sum()) for name, value in exact.items())
    return float((apart / sum(float(value.square().sum()) for value in exact.values())) ** 0.5)


def bf16(size: Size, device: torch.device, cpu: bool) -> None:
    """Measure the gradient of one global batch in bf16, cut into more and more micro batches, against fp32's.

    The rows are the same each time, so what grows with the number of cuts is the error of summing them.
    """
    most = 16 if cpu else 128
    size = dataclasses.replace(size, seq_len=size.seq_len // 2, batch=most)
    batch = rows(size, 7)
    made = recipe(size, "bf16", "optimizer.grad_clip=0")
    rounded = {name: value.float() for name, value in build(made, size.vocab).named_parameters()}
    exact, summed = (
        by_hand(size, batch, rounded, device, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    note = "norm of the gradient's error, by the norm of fp32's gradient"
    cuts = [(2, 1), (2, most // 8), (2, most)]
    for stage, parts in cuts if cpu else [*cuts, (1, most), (3, most)]:
        name = f"bf16 gradient, ZeRO-{stage}, micro batches: {parts}"
        with trial(name), engine(made, size, {"stage": stage}, most // parts) as (_, under):
            result = under.train_step(batch.split(most // parts), 0.0, 1, 0, False)
            assert result.applied, "the step was skipped"
            ours = {name: value.view(rounded[name].shape) for name, value in gradients(under).items()}
            row(name, value=distance(ours, exact), note=note)
    name = f"bf16 gradient, summed outside of bf16, micro batches: {most}"
    row(name, value=distance(summed, exact), note=f"{note}; by hand")


def by_hand(
    size: Size, batch: Rows, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The gradient of the batch's mean loss, a row at a time, summed in fp64."""
    causal = build(recipe(size, "fp32" if dtype == torch.float32 else "bf16"), size.vocab)
    with torch.no_grad():
        for name, value in causal.named_parameters():
            value.copy_(weights[name])
    causal.to(device)
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in causal.named_parameters()}
    for one in batch.split(1 if dtype == torch.bfloat16 else 16):
        causal.zero_grad()
        mean = plain_loss(causal.hf, one)
        (mean * (one.targets.size / batch.targets.size)).backward()
        for name, value in causal.named_parameters():
            assert value.grad is not None
            total[name] += value.grad.double()
    return {name: value.cpu() for name, value in total.items()}


# -- documents and the loss ------------------------------------------------------------------------


def documents(size: Size, device: torch.device, cpu: bool) -> None:
    """Compare attention within documents, under each implementation, with a block-diagonal mask by hand."""
    lengths = [size.seq_len // 2 + 3, size.seq_len // 4 - 5]
    lengths.append(size.seq_len - sum(lengths))
    batch = rows(size, 3, lengths)
    flash = importlib.util.find_spec("flash_attn") is not None
    tries = [("eager", "fp32"), ("sdpa", "fp32"), ("eager", "bf16"), ("sdpa", "bf16")]
    tries += [("flash_attention_2", "bf16"), ("flex_attention", "fp32"), ("flex_attention", "bf16")]
    tries += [(packed.ATTENTION, "bf16")]
    exact = attended(size, batch, device, "eager", "fp32", by_hand=True)
    rough = attended(size, batch, device, "eager", "bf16", by_hand=True)
    noise = distance(rough, exact)
    row("bf16 noise, eager with a mask by hand", value=noise, note="output and gradients against fp32")
    for attention, dtype in tries:
        name = f"document mask, {attention}, {dtype}"
        if attention == "flash_attention_2" and not flash:
            row(name, note="flash-attn is not installed")
        elif attention == packed.ATTENTION and not packed.available():
            row(name, note="this PyTorch or card has no kernels for it")
        elif attention == "flex_attention" and cpu:
            row(name, note="has no backward pass without a card")
        else:
            with trial(name):
                apart = distance(attended(size, batch, device, attention, dtype), exact)
                limit = TOLERANCE if dtype == "fp32" else 2 * noise
                row(
                    name,
                    ok=apart < limit,
                    value=apart,
                    note=f"against eager in fp32 by hand; below {limit:.1e}",
                )


def attended(
    size: Size, batch: Rows, device: torch.device, attention: str, dtype: str, by_hand: bool = False
) -> dict[str, Tensor]:
    """The last hidden states, and the gradients of a fixed sum over them."""
    made = recipe(size, dtype, "model.attention=eager")
    causal = build(made, size.vocab)
    if attention != "eager":
        causal.hf.set_attn_implementation(attention)
    causal.one_row = attention == "flash_attention_2"
    causal.by_documents = attention == packed.ATTENTION
    causal.to(device)
    ids, positions = (torch.as_tensor(each).to(device) for each in (batch.input_ids, batch.positions))
    if by_hand:
        mask = block_diagonal(positions, causal.hf.dtype)
        hidden = causal.hf.base_model(
            ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
    else:
        bounds, longest = document_bounds(positions.cpu().numpy())
        documents = (torch.as_tensor(bounds).to(device), longest) if causal.by_documents else None
        hidden = causal.hidden(ids, positions, documents)
    torch.manual_seed(0)
    weight = torch.randn(hidden.shape, dtype=torch.float32).to(device)
    (hidden.float() * weight).sum().backward()
    found = {
        name: value.grad.double().cpu() for name, value in causal.named_parameters() if value.grad is not None
    }
    return {**found, "output": hidden.detach().double().cpu()}


def block_diagonal(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """`[rows, 1, seq, seq]`: 0 where a token may look, a very low number where it may not."""
    document = (positions == 0).cumsum(dim=1)
    same = document[:, :, None] == document[:, None, :]
    earlier = torch.ones_like(same).tril()
    lowest = torch.finfo(dtype).min
    return torch.where(same & earlier, 0.0, lowest).to(dtype)[:, None]


def chunked(size: Size, device: torch.device, cpu: bool) -> None:
    """Compare the loss in chunks with whole logits: values and gradients."""
    vocab, length = (512, 64) if cpu else (32000, 1024)
    if cpu:
        cross_entropy.CHUNK_LOGITS["cpu"] = 2**14
    size = dataclasses.replace(size, layers=1, vocab=vocab, seq_len=length)
    assert size.batch * length > cross_entropy.chunk_rows(vocab, device), "one chunk holds all of it"
    batch = rows(size, 11)
    batch.targets[:, ::7] = cross_entropy.IGNORED
    found = {}
    for kind in ("chunked", "whole"):
        causal = build(recipe(size, "fp32"), vocab).to(device)
        ids, targets = (torch.as_tensor(each).to(device) for each in (batch.input_ids, batch.targets))
        if kind == "chunked":
            total, _, counted = causal(ids, targets)
            mean = total / counted.sum()
        else:
            mean = functional.cross_entropy(
                causal.hf(ids, use_cache=False).logits.flatten(0, 1), targets.flatten()
            )
        mean.backward()
        gradient = {
            name: value.grad.double().cpu()
            for name, value in causal.named_parameters()
            if value.grad is not None
        }
        found[kind] = {**gradient, "loss": mean.detach().double().cpu()}
    apart = distance(found["chunked"], found["whole"])
    row(
        "loss in chunks against whole logits",
        ok=apart < TOLERANCE,
        value=apart,
        note=f"vocabulary {vocab:,}, fp32",
    )


@contextmanager
def alone() -> Iterator[torch.device]:
    """A process group of this process, and its device, where fp32 is fp32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    collectives.join_ranks(World())
    yield collectives.device()
    collectives.leave_ranks()


def main(args: Options) -> None:
    """Write the rows."""
    size = small(args.cpu)
    with alone() as device:
        parts = (
            ("parity", lambda: parity(size, device)),
            ("frozen embeddings", lambda: frozen(size, device, args.cpu)),
            ("new_rows", lambda: new_rows(size, args.cpu)),
            ("chunked loss", lambda: chunked(size, device, args.cpu)),
            ("bf16 gradient", lambda: bf16(size, device, args.cpu)),
            ("document mask", lambda: documents(size, device, args.cpu)),
        )
        for name, part in parts:
            with trial(name):
                part()
            gc.collect()


if __name__ == "__main__":
    main(options())
