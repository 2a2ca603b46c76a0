"""Compiled layers and recomputed ones give the gradients of plain ones."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

from tests.helpers.model_tiny import INIT, build, recipe, tokens
from trainer.model.layers import decoder_layers
from trainer.model.sequence import SequencePart

PIECES = 90

HOW = ("full", "offload", "{every_n: 2}")


def gradients(*overrides: str, kind: str = "llama", positions: bool = False) -> dict[str, torch.Tensor]:
    causal = build(recipe(*overrides, **INIT[kind]), PIECES)
    input_ids, targets = tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1)
    places = torch.cat([torch.arange(5), torch.arange(11)]).expand(2, -1) if positions else None
    causal(input_ids, targets, places)[0].backward()
    return {name: parameter.grad for name, parameter in causal.named_parameters()}


@pytest.mark.parametrize("kind", INIT)
@pytest.mark.parametrize("how", HOW)
def test_recomputing_layers_changes_no_gradient(kind, how):
    plain = gradients(kind=kind, positions=True)
    again = gradients(f"model.activation_checkpointing={how}", kind=kind, positions=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("how", HOW)
def test_frozen_embeddings_are_no_obstacle_to_recomputation(how):
    causal = build(recipe(f"model.activation_checkpointing={how}", **INIT["llama"]), PIECES)
    causal.hf.get_input_embeddings().weight.requires_grad_(False)
    causal(tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1))[0].backward()
    assert all(parameter.grad is not None for parameter in decoder_layers(causal.hf)[0].parameters())


@pytest.mark.parametrize(("how", "kept"), [("none", 1.0), ("full", 0.5), ("{every_n: 2}", 0.8)])
def test_recomputing_keeps_less_for_the_backward_pass(how, kept):
    def saved(how: str) -> int:
        causal = build(recipe(f"model.activation_checkpointing={how}", **INIT["llama"]), PIECES)
        weights = {parameter.data_ptr() for parameter in causal.parameters()}
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total, _, _ = causal(tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1))
        return sum(size for where, size in storages.items() if where not in weights) + 0 * int(total.dim())

    assert saved(how) <= kept * saved("none")


class AllHeads:
    """A group of one rank, which has whole samples."""

    part, parts = 0, 1

    def exchange(self, blocks):
        return blocks


def graphs_of_parts(layers):
    """The graphs that are compiled for parts of samples, with a document's boundary in them and without."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = ("model.compile=true", "model.activation_checkpointing={every_n: 2}")
    causal = build(
        recipe(*compiled, **{**INIT["llama"], "num_hidden_layers": layers}),
        PIECES,
        wrap=partial(SequencePart, group=AllHeads()),
    )
    input_ids, targets = tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1)
    for places in (torch.cat([torch.arange(5), torch.arange(11)]).expand(2, -1), None):
        causal(input_ids, targets, places)[0].backward()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_layers_of_parts_of_samples_are_compiled_once_however_many_they_are(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no compiler is needed
    assert graphs_of_parts(layers=2) == graphs_of_parts(layers=6) > 0


@pytest.mark.slow
def test_compiled_layers_are_compiled_once_and_a_second_time_is_named(caplog):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    logging.getLogger("rewarm").propagate = True
    plain = gradients(positions=True)
    causal = build(
        recipe("model.compile=true", "model.activation_checkpointing=full", **INIT["llama"]), PIECES
    )
    assert len(decoder_layers(causal.hf)) > 1
    input_ids, targets = tokens(2, 16, pieces=PIECES), tokens(2, 16, pieces=PIECES, seed=1)
    places = torch.cat([torch.arange(5), torch.arange(11)]).expand(2, -1)
    with caplog.at_level("INFO", "rewarm"):
        causal(input_ids, targets, places)[0].backward()
        assert counters["stats"]["unique_graphs"] == 1, "one graph for all layers"
        assert not caplog.messages
        for name, parameter in causal.named_parameters():
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-5, atol=1e-6)
        causal(input_ids[:, :8], targets[:, :8])[0].backward()
    assert any("compiled again" in line for line in caplog.messages)
