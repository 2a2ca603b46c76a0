"""Prompts are continued greedily, alike on every rank, and what comes of them is kept."""

import json

import numpy as np
import pytest
import torch

from tests.helpers import scheduler_runs, vocabularies
from tests.helpers.model_tiny import build
from tests.helpers.model_tiny import recipe as tiny
from tokenization.errors import UserErrors
from tokenization.tokenizer.files import open_tokenizer
from trainer.plan.tokenizer import check_probe, prompt_ids
from trainer.run.probe import Prompts

PROBE = "probe={prompts: [the, 中国人], max_tokens: 3}"


@pytest.fixture
def tokenizer(tmp_path):
    return open_tokenizer(vocabularies.saved(tmp_path / "tokenizer", vocabularies.BASE))


class Counting:
    """Continues each row with the token after its last one; notes what it was shown."""

    def __init__(self, tokenizer):
        self.last, self.shown = tokenizer.size - 1, []

    def next_tokens(self, ids, places):
        self.shown.append((ids.shape, places.tolist()))
        return np.minimum(ids[np.arange(len(ids)), places] + 1, self.last)


def run_of(tmp_path, tokenizer, rank=0):
    recipe = scheduler_runs.recipe(edits=[PROBE, f"run_dir={tmp_path}"])
    return Prompts(recipe, tokenizer, rank)


def test_a_prompt_begins_a_document_and_each_goes_on_at_its_own_end(tmp_path, tokenizer):
    english, chinese = prompt_ids(["the", "中国人"], tokenizer)
    assert (english[0], chinese[0]) == (tokenizer.eos_id, tokenizer.eos_id)
    engine = Counting(tokenizer)
    run_of(tmp_path, tokenizer).continuations(engine)
    width = max(len(english), len(chinese)) + 3
    assert engine.shown == [((2, width), [len(english) + n - 1, len(chinese) + n - 1]) for n in range(3)]


def test_rank_0_keeps_what_comes_of_it(tmp_path, tokenizer, caplog):
    run_of(tmp_path, tokenizer, rank=1).show(Counting(tokenizer), 7, 700)
    assert not (tmp_path / "probes.jsonl").exists()
    run_of(tmp_path, tokenizer).show(Counting(tokenizer), 7, 700)
    kept = [json.loads(line) for line in (tmp_path / "probes.jsonl").open(encoding="utf-8")]
    assert [(one["step"], one["tokens"], one["prompt"]) for one in kept] == [
        (7, 700, "the"),
        (7, 700, "中国人"),
    ]


def test_a_text_ends_where_the_model_ends_the_document(tmp_path, tokenizer):
    class Ending(Counting):
        def next_tokens(self, ids, places):
            return np.full(len(ids), tokenizer.eos_id)

    assert run_of(tmp_path, tokenizer).continuations(Ending(tokenizer)) == ["", ""]


def test_the_model_s_most_likely_token_is_that_of_its_logits():
    causal = build(tiny(), 90).eval()
    ids = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(0))
    places = torch.tensor([11, 4, 0])
    found, nats = causal(ids, ids, next_at=places[:, None])
    logits = causal.hf(ids).logits[torch.arange(3), places, :90]
    assert found[:, 0].tolist() == logits.argmax(dim=1).tolist()
    goals = ids[torch.arange(3), places]
    expected = torch.nn.functional.cross_entropy(logits, goals, reduction="none")
    torch.testing.assert_close(nats[:, 0], expected)


def test_a_prompt_that_the_context_cannot_hold_is_one_line(tokenizer):
    recipe = scheduler_runs.recipe(edits=[PROBE])
    check_probe(recipe, {"max_position_embeddings": 20}, tokenizer)
    with pytest.raises(UserErrors, match=r"probe\.prompts\.1: .*context is 8"):
        check_probe(recipe, {"max_position_embeddings": 8}, tokenizer)


def test_ranks_that_share_samples_continue_no_prompts():
    with pytest.raises(UserErrors, match="leave it out"):
        scheduler_runs.recipe(edits=[PROBE, "sequence_parallel_size=2"])
