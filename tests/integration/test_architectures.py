"""Every architecture trains, resumes, is exported and goes on as another run's base."""

import json

import pytest
import torch

from tests.helpers import runs
from trainer.cli.main import main

pytestmark = pytest.mark.slow

STEP = 8 * 32
"""Tokens in a step."""

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
KINDS = {
    "llama": {**SHAPE, "num_key_value_heads": 2},
    "mistral": {**SHAPE, "num_key_value_heads": 2, "model_type": "mistral"},
    "qwen2": {**SHAPE, "num_key_value_heads": 2, "model_type": "qwen2", "tie_word_embeddings": True},
    "gpt_neox": {**SHAPE, "model_type": "gpt_neox"},
}
STAGES = {"llama": 3, "mistral": 2, "qwen2": 3, "gpt_neox": 1}


def tree(data, run, kind, **changes):
    """Four steps, saved at the second and at the end."""
    tree = runs.recipe(data, run, STAGES[kind], name="any", **changes)
    tree["model"]["init"] = KINDS[kind]
    tree["phases"][0]["tokens"] = 4 * STEP
    tree["validation"] |= {"every_tokens": 4 * STEP}
    tree["checkpoint"] = {"every_tokens": 2 * STEP, "keep_last": 2}
    tree["logging"] = {"tensorboard": False}
    return tree


def continued(data, run, kind, base):
    """A run whose weights come from another run."""
    continued = tree(data, run, kind, allow=[])
    continued["model"] |= {"init": None, "base": str(base)}
    continued["phases"][0] |= {"keep_optimizer": base.name.startswith("step-")}
    continued["phases"][0]["schedule"] = {"kind": "constant", "max_lr": 1e-3, "start_lr": "reached"}
    return continued


def pieces(data, text):
    """What the data were made with."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(
        model_file=str(data / "tokenizer" / "tokenizer.model")
    ).encode(text)


def export(run, out, dtype="fp32"):
    assert main(["export", str(run), "--out", str(out), "--dtype", dtype]) == 0
    return out


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Runs `KIND`, `KIND-again` from its second step, `KIND-exported`, and what goes on from each."""
    folder = tmp_path_factory.mktemp("architectures")
    jobs = []
    for kind in KINDS:
        run = folder / kind
        jobs.append(runs.Job(tree(data, run, kind)))
        jobs.append(runs.Job(tree(data, folder / f"{kind}-again", kind), after=(run, 2)))
        step = run / "checkpoints" / "step-00000004"
        jobs.append(runs.Job(continued(data, folder / f"{kind}-from-checkpoint", kind, step)))
    assert {job["status"] for job in runs.launch_several(folder, jobs, 2)} == {0}
    jobs = [
        runs.Job(
            continued(
                data, folder / f"{kind}-from-export", kind, export(folder / kind, folder / f"{kind}-fp32")
            )
        )
        for kind in KINDS
    ]
    assert {job["status"] for job in runs.launch_several(folder, jobs, 1)} == {0}
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes_to_the_bit(folder, kind):
    expected, found = runs.trace(folder / kind), runs.trace(folder / f"{kind}-again")
    assert [record["step"] for record in found] == [3, 4]
    assert found == expected[-2:]
    assert runs.manifest(folder / f"{kind}-again", 4)["files"] == runs.manifest(folder / kind, 4)["files"]


def evaluate(model, data, capsys, *arguments):
    """`rewarm eval --json`, by validation set."""
    prefixes = [str(data / "en-val"), str(data / "zh-val")]
    assert main(["eval", str(model), "--data", *prefixes, "--json", *arguments]) == 0
    return list(json.loads(capsys.readouterr().out).values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_what_was_trained(folder, data, kind, tmp_path, capsys):
    import transformers

    run = folder / kind
    trained = evaluate(run, data, capsys)
    last = runs.trace(run)[-1]
    measured = [last["eval/upstream/bits_per_byte"], last["eval/downstream/bits_per_byte"]]
    assert [score["bits_per_byte"] for score in trained] == pytest.approx(measured, rel=1e-6)

    ids = torch.arange(5, 5 + 24).view(2, 12)
    logits = {}
    for dtype in ("fp32", "bf16", "fp16"):
        out = tmp_path / dtype
        export(run, out, dtype)
        capsys.readouterr()
        exported = evaluate(out, data, capsys)
        for what in ("tokens", "measured_on", "run_seq_len"):
            assert [score[what] for score in exported] == [score[what] for score in trained]
        assert exported[0]["measured_on"]["fingerprint"] in (out / "README.md").read_text()
        found = [score["bits_per_byte"] for score in exported]
        # An fp32 export scores the same; the others lie within what 8 and 11 bits of mantissa can tell.
        within = {"fp32": 1e-6, "bf16": 2e-3, "fp16": 3e-4}[dtype]
        assert found == pytest.approx([score["bits_per_byte"] for score in trained], rel=within)
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        # transformers forces another tokenizer's rules on Qwen2, and the model card says what to use.
        loader = "PreTrainedTokenizerFast" if kind == "qwen2" else "AutoTokenizer"
        assert f"tokenizer = {loader}.from_pretrained" in (out / "README.md").read_text()
        tokenizer = getattr(transformers, loader).from_pretrained(out)
        assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]
        text = runs.text("zh", 1, 7)[0] + runs.text("en", 1, 7)[0]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces(data, text)
        with torch.no_grad():
            logits[dtype] = model.float()(ids).logits

    from trainer.evaluation.offline import open_scored, run_seq_len

    causal = open_scored(str(run), logits["fp32"].shape[-1])
    assert run_seq_len(str(run)) == 32
    with torch.no_grad():
        engine = causal.eval().hf(ids).logits
    assert torch.allclose(logits["fp32"], engine, rtol=0, atol=1e-5)
    assert torch.allclose(logits["bf16"], engine, rtol=0, atol=5e-2)
    assert torch.allclose(logits["fp16"], engine, rtol=0, atol=5e-3)
    assert not torch.equal(logits["bf16"], engine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["checkpoint", "export"])
def test_another_run_goes_on_from_it(folder, kind, form):
    run, ended = folder / f"{kind}-from-{form}", runs.manifest(folder / kind, 4)
    (start,) = [json.loads(line) for line in (run / "lineage.jsonl").open()]
    assert start["kind"] == "start"
    base = f"{kind}/checkpoints/step-00000004" if form == "checkpoint" else f"{kind}-fp32"
    assert base in start["found"]
    # Its lineage is known: the LR that it had reached, and what it has seen.
    (phase,) = start["state"]["phases"]
    assert phase["reached"] == pytest.approx(1e-3)
    assert start["state"]["peak_before"] == pytest.approx(1e-2)
    assert sum(start["state"]["seen_before"].values()) == pytest.approx(4 * STEP, abs=2)

    before, after = runs.trace(folder / kind), runs.trace(run)
    assert after[0]["eval/upstream/forgetting"] == 0
    for name in ("eval/upstream/bits_per_byte", "eval/downstream/bits_per_byte"):
        assert after[0][name] == pytest.approx(before[-1][name], rel=1e-6)
    assert [record["lr"] for record in after[1:]] == pytest.approx([1e-3] * 4)
    assert after[-1]["loss/train"] < before[1]["loss/train"]
    # A checkpoint has the optimizer's moments; an export has none.
    steps = ended["adam_step"] + 4 if form == "checkpoint" else 4
    assert runs.manifest(run, 4)["adam_step"] == steps
