"""A run's own model answers lm-eval as lm-eval's `hf` model does with its export."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import transformers

from tests.helpers.model_tiny import exported_tiny
from tests.helpers.task_files import write_tasks
from trainer.evaluation.answers import answer_rows, continue_rows
from trainer.evaluation.harness import HarnessModel, harness_model
from trainer.evaluation.tasks import OFFLINE, answer_tasks, run_tasks, task_manager
from trainer.model.build import load_model
from trainer.recipe.validation import Tasks


class Model:
    """The exported weights in place of a run's engine."""

    def __init__(self, export, pieces):
        self.causal = load_model(str(export), vocab_size=pieces).eval()

    @torch.no_grad()
    def answers(self, ids, targets, places):
        best, nats = self.causal(*map(torch.from_numpy, (ids, targets)), next_at=torch.from_numpy(places))
        return best.numpy(), nats.double().numpy()

    @torch.no_grad()
    def score(self, micro):
        return self.causal(torch.from_numpy(micro.input_ids), torch.from_numpy(micro.targets))[1:]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra")
def test_a_run_s_numbers_are_those_of_its_export(tmp_path, monkeypatch):
    for name in OFFLINE:
        monkeypatch.setenv(name, "")
    export = exported_tiny(tmp_path / "export")  # in fp32, as the run computes
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    model = Model(export, len(tokenizer))
    own = harness_model(
        tokenizer,
        64,  # a text of more bytes takes several windows
        lambda rows, greedy: answer_rows(model, rows, 128, greedy=greedy),
        lambda rows, more: continue_rows(model, rows, more, 128),
    )
    text = own.generate_until(
        [SimpleNamespace(args=("the law of", {"until": [".", "\n"], "max_gen_toks": 20}))]
    )
    folder = write_tasks(tmp_path / "tasks", written=text[0])
    tasks = Tasks(names=("next_word", "whole_text", "goes_on"), path=str(folder))
    expected = run_tasks(str(export), tasks.names, tasks.path)
    found = answer_tasks(own, tasks)
    task_manager.cache_clear()
    assert found.keys() == expected.keys() == set(tasks.names)
    for task in tasks.names:
        assert found[task] == pytest.approx(expected[task], rel=1e-4)
    assert {"acc,none", "acc_stderr,none", "acc_norm,none"} <= found["next_word"].keys()
    assert found["next_word"]["acc_stderr,none"] > 0
    assert found["goes_on"]["exact_match,none"] >= 0.25
    assert found["whole_text"]["bits_per_byte,none"] > 0


class Letters:
    """A tokenizer whose tokens are the bytes of a text; 0 ends a document."""

    bos_token_id, eos_token_id = None, 0

    def encode(self, text, add_special_tokens=True):
        return [*([1] if add_special_tokens else []), *text.encode()]

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode()


def writing(texts, context=512):
    """A model that writes these texts, whatever it is given, and notes how much it is asked for at once."""
    asked = []

    def go_on(rows, more):
        asked.append((len(rows), more))
        done = sum(count for _, count in asked[:-1])
        return [(text.encode() + bytes(99))[done : done + more] for text in texts][: len(rows)]

    return HarnessModel(Letters(), context, None, go_on), asked


def ask(model, count, **settings):
    return model.generate_until([SimpleNamespace(args=("begin", settings))] * count)


def test_a_text_ends_at_its_first_stop_or_where_the_document_ends():
    model, _ = writing(["one. two\nthree", "no stop"])
    assert ask(model, 2, until=["\n", "."]) == ["one", "no stop"]
    assert ask(writing(["one. two\nthree"])[0], 1, until="\n") == ["one. two"]


def test_a_text_has_at_most_the_tokens_of_its_task():
    model, asked = writing(["x" * 60])
    assert ask(model, 1, max_gen_toks=20) == ["x" * 20]
    assert asked == [(1, 16), (1, 4)]


def test_what_has_ended_is_not_continued():
    model, asked = writing(["x" * 60, "y."])
    assert ask(model, 2, until=["."], max_gen_toks=20) == ["x" * 20, "y"]
    assert asked == [(2, 16), (1, 4)]


def test_a_context_is_cut_on_its_left_and_a_text_beyond_it_is_refused():
    model, _ = writing([""], context=8)
    assert model._begin("abcdefgh", {"max_gen_toks": 3}).ids == list(b"defgh")
    with pytest.raises(ValueError, match="8 tokens be written, and the model's context is 8"):
        ask(model, 1, max_gen_toks=8)


def test_a_text_that_begins_with_the_special_token_gets_no_second_one():
    class Begun(Letters):
        bos_token_id = ord("<")

    assert HarnessModel(Begun(), 8, None, None).tok_encode("<a") == list(b"<a")
    assert HarnessModel(Begun(), 8, None, None).tok_encode("a") == [1, *b"a"]
