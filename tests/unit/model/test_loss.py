"""The losses of a model against transformers' own, and document masks against separate forward passes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.helpers.model_tiny import INIT, build, recipe, tokens
from trainer.model import cross_entropy
from trainer.model.cross_entropy import IGNORED
from trainer.model.loss import CausalLM

PIECES = 90


def model(kind: str = "llama", *overrides: str, **init: object) -> CausalLM:
    return build(recipe(*overrides, **{**INIT[kind], **init}), PIECES)


def reference(causal: CausalLM, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per token [micro, seq] from whole logits."""
    logits = causal.hf(input_ids).logits[..., :PIECES]
    nats = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    return nats


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("chunk_logits", [1, PIECES * 5, 2**25])  # 1, 5 and all 48 tokens at a time
def test_losses_and_gradients_equal_those_of_whole_logits(kind, chunk_logits, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", {"cpu": chunk_logits})
    causal = model(kind).double()
    input_ids, targets = tokens(3, 16, pieces=PIECES), tokens(3, 16, pieces=PIECES, seed=1)
    targets[0, :4] = IGNORED
    targets[2] = IGNORED
    total, rows, counts = causal(input_ids, targets)
    total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in causal.named_parameters()}
    causal.zero_grad()
    expected = reference(causal, input_ids, targets)
    expected.sum().backward()
    torch.testing.assert_close(rows, expected.sum(dim=1), rtol=1e-12, atol=1e-12)
    assert total.item() == pytest.approx(expected.sum().item(), rel=1e-12)
    assert counts.tolist() == [12, 16, 0]
    assert not rows.requires_grad
    for name, parameter in causal.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-12, atol=1e-12)


def test_padding_rows_have_no_probability_and_no_gradient():
    causal = model(vocab_size=128)
    input_ids, targets = tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1)
    before = causal(input_ids, targets)[0]
    with torch.no_grad():
        causal.hf.lm_head.weight[PIECES:] = 1e3
    after = causal(input_ids, targets)[0]
    assert after.item() == before.item()
    after.backward()
    assert not causal.hf.lm_head.weight.grad[PIECES:].any()
    assert causal.hf.lm_head.weight.grad[:PIECES].any()


def test_logits_are_compared_in_fp32():
    causal = model("llama", "model.dtype=bf16")
    input_ids, targets = tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1)
    total, _, _ = causal(input_ids, targets)
    logits = causal.hf(input_ids).logits
    assert logits.dtype == torch.bfloat16
    expected = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


DOCUMENTS = [[5, 1, 7, 3], [16], [1, 1, 14]]
"""Lengths of the documents in each row of 16 tokens."""


@pytest.mark.parametrize(("kind", "window"), [*((kind, None) for kind in INIT), ("mistral", 4), ("qwen2", 4)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_documents_are_scored_as_if_alone(kind, attention, window):
    sliding = {"sliding_window": window} if window else {}
    if window and kind == "qwen2":
        sliding |= {"use_sliding_window": "true", "max_window_layers": 1}
    causal = model(kind, f"model.attention={attention}", **sliding)
    assert causal.hf.config._attn_implementation == attention
    input_ids, targets = tokens(3, 16, pieces=PIECES), tokens(3, 16, pieces=PIECES, seed=1)
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in DOCUMENTS])
    packed = causal.hidden(input_ids, positions)
    for row, lengths in enumerate(DOCUMENTS):
        alone = [causal.hidden(part[None])[0] for part in input_ids[row].split(lengths)]
        torch.testing.assert_close(packed[row], torch.cat(alone), rtol=0, atol=1e-6)
    _, rows, _ = causal(input_ids, targets, positions)
    pieces = [
        sum(
            causal(ids[None], goal[None])[0].item()
            for ids, goal in zip(input_ids[row].split(lengths), targets[row].split(lengths), strict=True)
        )
        for row, lengths in enumerate(DOCUMENTS)
    ]
    assert rows.tolist() == pytest.approx(pieces, rel=1e-6)
    unmasked = causal.hidden(input_ids)
    assert not torch.allclose(packed[0, 5:], unmasked[0, 5:], atol=1e-4), "the mask must matter"


def test_flash_attention_gets_one_row_in_which_positions_tell_documents_apart():
    # Its kernels need a GPU. What we decide is the shape: it separates documents in a single row only,
    # and such a row must give what separate rows give.
    causal = model("llama", "model.attention=eager")
    input_ids = tokens(3, 16, pieces=PIECES)
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in DOCUMENTS])
    expected = causal.hidden(input_ids, positions)
    seen = []
    causal.hf.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0].shape, kwargs["position_ids"].shape)), with_kwargs=True
    )
    causal.one_row = True
    torch.testing.assert_close(causal.hidden(input_ids, positions), expected, rtol=0, atol=1e-6)
    assert seen == [((1, 48), (1, 48))]
