"""What is trained within documents is scored within documents, and never beyond a model's context."""

import numpy as np
import pytest
import torch

from tests.helpers import runs
from tests.helpers.model_tiny import build, recipe, tokens
from tokenization.errors import UserError
from trainer.evaluation.held_out import Baseline, evaluate, measured_on
from trainer.evaluation.offline import run_document_mask, score_model
from trainer.recipe.load import load_recipe

PIECES, EOS = 90, 2
MASK = "causal_per_document"


class Store:
    """Random text whose documents end with EOS."""

    fingerprint, eos_id, utf8_bytes = "a", EOS, 1000

    def __init__(self, lengths):
        documents = [
            np.append(tokens(length - 1, pieces=PIECES - 3, seed=length).numpy() + 3, EOS)
            for length in lengths
        ]
        self.documents, self.ids = documents, np.concatenate(documents)
        self.tokens = len(self.ids)

    def read(self, start, count):
        return self.ids[start : start + count]


class Alone:
    """A model, and the positions that it was given."""

    def __init__(self, model):
        self.model, self.positions = model.eval(), []

    @torch.no_grad()
    def score(self, micro):
        self.positions.append(micro.positions)
        arrays = (micro.input_ids, micro.targets, micro.positions)
        _, nats, targets = self.model(*(None if one is None else torch.from_numpy(one) for one in arrays))
        return nats.double(), targets.double()


@pytest.fixture(scope="module")
def model():
    return build(recipe("seed=3"), PIECES)


def scored(model, store, **options):
    return evaluate(Alone(model), store, seq_len=32, micro_batch_size=2, max_tokens=None, **options)


def test_under_the_mask_a_document_is_scored_as_if_it_were_alone(model):
    store = Store([9, 14, 7])  # 30 tokens: one window
    ids, targets = store.ids[None, :-1].copy(), store.ids[None, 1:].copy()
    alone, begin = 0.0, 0
    with torch.no_grad():
        for length in (
            9,
            14,
            7,
        ):  # the EOS that ends a document is the input before the next one's first token
            part = slice(begin, begin + length)
            part_ids, part_targets = torch.from_numpy(ids[:, part]), torch.from_numpy(targets[:, part])
            alone += float(model.eval()(part_ids, part_targets)[0])
            begin += length
    masked, across = (scored(model, store, document_mask=mask).nats for mask in (MASK, "none"))
    assert masked == pytest.approx(alone, rel=1e-5)
    assert abs(across - masked) > 1e-3 * masked


def test_without_the_mask_no_positions_are_given(model):
    scorer = Alone(model)
    evaluate(scorer, Store([9, 14]), seq_len=8, micro_batch_size=2, max_tokens=None)
    assert set(map(type, scorer.positions)) == {type(None)}


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (MASK, MASK, []),
        ("none", MASK, [f"document_mask none → {MASK}"]),
        (None, MASK, [f"document_mask none → {MASK}"]),  # older checkpoints scored without it
        (None, "none", []),
    ],
)
def test_a_score_of_another_mask_is_not_comparable(then, now, told):
    store = Store([9])
    kept = measured_on(store, 8, None, then or "none")
    if then is None:
        del kept["document_mask"]
    assert Baseline(2.0, kept).unlike(measured_on(store, 8, None, now)) == told


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory):
    """A model directory with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tree = runs.recipe(data, folder / "run")
    tree["model"]["init"]["max_position_embeddings"] = 64
    causal = build(load_recipe(runs.write(tree, folder / "recipe.yaml")), 420)
    causal.hf.save_pretrained(folder / "model")
    return folder / "model"


def test_a_length_beyond_the_context_is_refused(data, saved):
    told = r"--seq-len: 65 is beyond the context of .*: its max_position_embeddings is 64; give at most 64"
    with pytest.raises(UserError, match=told):
        score_model(str(saved), [str(data / "en")], seq_len=65)
    assert score_model(str(saved), [str(data / "en")], seq_len=64, max_tokens=64)


@pytest.mark.slow
def test_eval_measures_what_the_run_measured(data, tmp_path):
    tree = runs.recipe(data, tmp_path / "run", document_mask=MASK)
    tree["phases"][0]["tokens"] = 2 * 8 * 32
    done = runs.launch(runs.write(tree, tmp_path / "recipe.yaml"), 1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert run_document_mask(str(tmp_path / "run")) == MASK
    (score,) = score_model(str(tmp_path / "run"), [str(data / "en-val")]).values()
    last = runs.trace(tmp_path / "run")[-1]["eval/upstream/bits_per_byte"]
    assert score.bits_per_byte == pytest.approx(last, rel=1e-6)
