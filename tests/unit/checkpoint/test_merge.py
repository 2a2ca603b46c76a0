"""The average of models: the numbers of plain PyTorch, what is refused, and a decay after the fact."""

from __future__ import annotations

import itertools
import json
import weakref
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.helpers.checkpoints import position, save_weights
from tests.helpers.model_tiny import CHINESE, ENGLISH, INIT, build, recipe, tokenizer
from tests.helpers.scheduler_runs import CONSTANT, WSD, begun, phase, trained
from tests.helpers.scheduler_runs import recipe as schedule_recipe
from tokenization.errors import UserError
from tokenization.tokenizer.files import open_tokenizer
from trainer.checkpoint.card import Card
from trainer.checkpoint.decay import DECAYS, constant_stretch, decay_weights
from trainer.checkpoint.export import export_model
from trainer.checkpoint.merge import averaged, hold_alike, merge_models, open_model
from trainer.cli.main import main
from trainer.recipe.load import dump_recipe
from trainer.scheduler.curves import interpolate
from trainer.storage.hub import copy_tokenizer
from trainer.storage.safetensors import Weight

PIECES = 3 + 256 + len(ENGLISH) + len(CHINESE)


def model(folder, seed, pieces=(*ENGLISH, *CHINESE), dtype="fp32", state=None, kind="llama", **init):
    """An exported model with random weights, and those weights."""
    tok = open_tokenizer(tokenizer(folder.parent / f"tok-{len(pieces)}-{pieces[-1]}", *pieces))
    causal = build(recipe(f"seed={seed}", **{**INIT[kind], **init}), tok.size)
    weights = [Weight.of(*named) for named in causal.named_parameters()]
    export_model(
        weights, causal.hf.config, tok.path.parent, folder, vocab_size=tok.size, dtype=dtype,
        card=Card(folder.name, state=state),
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("tied", ["false", "true"])
def test_the_average_is_that_of_the_state_dicts(tmp_path, kind, tied):
    options = {"kind": kind, "tie_word_embeddings": tied}
    own = [model(tmp_path / f"m{n}", n, dtype=d, **options) for n, d in enumerate(("fp32", "bf16", "fp16"))]
    words = [str(tmp_path / f"m{n}") for n in range(3)]
    out = ["--out", str(tmp_path / "out"), "--dtype", "fp32"]
    assert main(["merge", *words, "--weights", "0.5,1/4,1/4", *out]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert merged.keys() == own[0].keys()
    for name, value in merged.items():
        wanted = sum(w * one[name].double() for w, one in zip((0.5, 0.25, 0.25), own, strict=True))
        assert torch.allclose(value.double(), wanted, rtol=0, atol=1e-7), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "is the linear average of 3 models, made with `rewarm merge`; weights in fp32" in card
    assert f"| {words[0]} | 0.5 | 0 |" in card
    assert open_tokenizer(tmp_path / "out").fingerprint == open_tokenizer(words[0]).fingerprint


def test_a_weight_of_0_reads_nothing_and_the_ends_of_the_line_are_the_models(tmp_path, monkeypatch):
    own = [model(tmp_path / f"m{n}", n) for n in range(2)]
    words = [str(tmp_path / f"m{n}") for n in range(2)]
    for at, weights in enumerate(("1,0", "0,1")):
        out = tmp_path / f"out{at}"
        assert main(["merge", *words, "--weights", weights, "--dtype", "fp32", "--out", str(out)]) == 0
        merged = AutoModelForCausalLM.from_pretrained(out).state_dict()
        assert all(torch.equal(value, own[at][name]) for name, value in merged.items())


def test_the_state_of_the_one_trained_furthest_goes_with_it(tmp_path):
    for name, tokens in (("base", 5), ("run", 9)):
        model(tmp_path / name, 0, state={"trained_tokens": tokens, "settings": {"seq_len": 16}})
    merge_models([str(tmp_path / "base"), str(tmp_path / "run")], [0.5, 0.5], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "rewarm.json").read_text())["trained_tokens"] == 9


def test_one_tensor_of_one_model_is_in_memory_at_a_time(tmp_path):
    for n in range(3):
        model(tmp_path / f"m{n}", n)
    made: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    held = []

    def make(was):
        made.add(fresh := was().clone())
        held.append(len(made))
        return fresh

    with ExitStack() as stack:
        opened = [open_model(str(tmp_path / f"m{n}"), stack) for n in range(3)]
        spied = [
            replace(one, weights={k: replace(w, make=partial(make, w.make)) for k, w in one.weights.items()})
            for one in opened
        ]
        for weight in averaged(spied, [0.2, 0.3, 0.5]):
            weight.make()
    assert len(held) == 3 * len(opened[0].weights)
    assert max(held) <= 2, "the next one may be made while the last is being let go"


def test_padding_rows_count_for_nothing(tmp_path):
    """What `rewarm model extend` writes has them, and an export does not."""
    own = model(tmp_path / "export", 0)
    tok = open_tokenizer(tmp_path / "export")
    padded = build(recipe("seed=1", **INIT["llama"], vocab_size=320), PIECES).hf
    padded.save_pretrained(tmp_path / "base")
    copy_tokenizer(tok.path.parent, tmp_path / "base")
    for order in (["base", "export"], ["export", "base"]):
        out = tmp_path / "-".join(order)
        merge_models([str(tmp_path / name) for name in order], [0.5, 0.5], out, "fp32")
        merged = AutoModelForCausalLM.from_pretrained(out).state_dict()
        for name, value in padded.state_dict().items():
            wanted = (value[: len(own[name])] + own[name]) / 2
            assert torch.allclose(merged[name], wanted, rtol=0, atol=1e-7), name


def refusal(tmp_path, capsys, *words):
    assert main(["merge", *words, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_cannot_be_averaged_is_refused_in_one_line(tmp_path, capsys):
    a, b, small, wide, theta = (str(tmp_path / name) for name in ("a", "b", "small", "wide", "theta"))
    model(tmp_path / "a", 0)
    model(tmp_path / "b", 1)
    model(tmp_path / "small", 0, ENGLISH)
    model(tmp_path / "other", 0, (*ENGLISH, *reversed(CHINESE)))
    model(tmp_path / "wide", 0, intermediate_size=64)
    model(tmp_path / "theta", 0, rope_theta=5e5)
    line = refusal(tmp_path, capsys, a, small)
    assert "is of another tokenizer, with 267 pieces, and" in line
    assert "give the base that `rewarm model extend` wrote, with which the run began" in line
    assert "is of another tokenizer" in refusal(tmp_path, capsys, a, str(tmp_path / "other"))
    assert "intermediate_size 64 and not 48" in refusal(tmp_path, capsys, a, wide)
    assert "rope_parameters" in refusal(tmp_path, capsys, a, theta)
    assert "sum to 0.66 and not to 1; give fractions" in refusal(
        tmp_path, capsys, a, b, "--weights", "0.33,0.33"
    )
    assert "are 1 weights for 2 models" in refusal(tmp_path, capsys, a, b, "--weights", "1")
    assert "each is from 0 to 1" in refusal(tmp_path, capsys, a, b, "--weights", "2,-1")
    assert "needs two models or more" in refusal(tmp_path, capsys, a)
    assert "does not exist" in refusal(tmp_path, capsys, a, str(tmp_path / "c"))
    assert "for --decay" in refusal(tmp_path, capsys, a, b, "--last", "2")
    assert "weights over the checkpoints of one run" in refusal(tmp_path, capsys, a, b, "--decay", "linear")
    assert "does not hold a committed checkpoint" in refusal(tmp_path, capsys, a, "--decay", "linear")
    before = (tmp_path / "b" / "model.safetensors").read_bytes()
    assert main(["merge", a, a, "--out", b]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == before


def test_weights_that_another_quantized_are_refused(tmp_path):
    model(tmp_path / "a", 0)
    with ExitStack() as stack:
        opened = open_model(str(tmp_path / "a"), stack)
        lacking = replace(opened, name="b", weights=dict(list(opened.weights.items())[1:]))
        with pytest.raises(UserError, match="'b' lacks 1 weight"):
            hold_alike(opened, lacking)


# --- a decay after the fact


@given(
    st.sampled_from(DECAYS),
    st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    st.integers(0, 10**6),
)
def test_the_average_ends_where_the_decayed_run_would_have(shape, gaps, seed):
    """SGD whose gradients do not depend on the weights: then the emulation is exact."""
    tokens = np.cumsum([5, *gaps])
    updates = np.random.default_rng(seed).normal(size=tokens[-1] - tokens[0])  # one per token
    at = tokens - tokens[0]
    path = np.concatenate([[0.0], np.cumsum(updates)])[at]
    weights = decay_weights(shape, tokens.tolist())
    assert min(weights) >= -1e-12
    assert sum(weights) == pytest.approx(1)
    fine = (np.arange(at[-1] * 20) + 0.5) / (at[-1] * 20)  # the curve, 20 points per token
    curve = interpolate({"sqrt": "1-sqrt"}.get(shape, shape), 1.0, 0.0, fine).reshape(-1, 20).mean(1)
    scales = np.array([curve[a:b].mean() for a, b in itertools.pairwise(at)])
    wanted = sum(s * (b - a) for s, a, b in zip(scales, path, path[1:], strict=False))
    assert np.dot(weights, path) == pytest.approx(wanted, abs=2e-2 * np.abs(path).max() + 1e-9)


def test_a_linear_decay_over_equal_distances_is_the_trapezoid_rule():
    assert decay_weights("linear", [100, 200, 300, 400]) == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6])
    with pytest.raises(ValueError, match="growing"):
        decay_weights("linear", [3])


def run_of(tmp_path, states):
    """A run with a checkpoint of two ranks for each state, whose weights are multiplied by its step."""
    tokenizer(tmp_path / "tok", *ENGLISH, *CHINESE)
    causal = build(recipe(), PIECES)
    text = dump_recipe(recipe(f"model.tokenizer={tmp_path / 'tok'}"))
    config = causal.hf.config.to_dict() | {"vocab_size": PIECES}
    for state in states:
        where = position(state.step, 2, tokens=state.trained_tokens, recipe=text, state=state.to_json())
        weights = {f"hf.{name}": value * state.step for name, value in causal.hf.named_parameters()}
        save_weights(tmp_path / "run" / "checkpoints", weights, where, config)
    return dict(causal.hf.named_parameters())


def test_a_decay_over_a_runs_checkpoints(tmp_path, capsys):
    begin = begun(schedule_recipe(phase("one", CONSTANT.replace("1%", "20%"))))
    weights = run_of(tmp_path, [trained(begin, steps) for steps in (10, 20, 40, 80)])
    words = ["merge", str(tmp_path / "run"), "--decay", "linear", "--dtype", "fp32"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # step 10 is within the warm-up; the shares of the tokens are 1/3 and 2/3, the scales 5/6 and 1/3
    assert [one["weight"] for one in told["models"]] == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    factor = 20 / 6 + 40 / 2 + 80 / 3
    for name, value in weights.items():
        assert torch.allclose(merged[name], value * factor, rtol=1e-5), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with the weights of a linear decay over the last 6,000 tokens" in card
    assert [one.manifest.step for one in constant_stretch(tmp_path / "run", 2)] == [40, 80]
    with pytest.raises(UserError, match=r"has 3 checkpoint\(s\) .* and 4 are needed; keep more of them"):
        constant_stretch(tmp_path / "run", 4)


def test_checkpoints_after_the_learning_rate_fell_are_not_those_of_a_constant_one(tmp_path):
    begin = begun(schedule_recipe(phase("one", WSD)))
    run_of(tmp_path, [trained(begin, steps) for steps in (50, 95, 100)])
    with pytest.raises(UserError, match=r"has 1 checkpoint\(s\) that the constant learning rate joins"):
        constant_stretch(tmp_path / "run")
