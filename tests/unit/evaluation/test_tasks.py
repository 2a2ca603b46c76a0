"""An export is handed to lm-eval with one's own task files, and nothing is fetched that was not named."""

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.helpers.task_files import write_tasks
from tests.recorded.jobs import MADE
from tokenization.errors import UserError
from trainer.cli.main import main
from trainer.evaluation.tasks import OFFLINE, run_tasks, task_manager

EXPORT = MADE / "export"


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a task of two questions; what the environment is set to does not outlive the test."""
    for name in OFFLINE:
        monkeypatch.setenv(name, "")
    questions = [{"text": "the law of", "choices": [" a", " people"], "answer": place} for place in (0, 1)]
    return write_tasks(tmp_path, "next_word", questions=questions)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra")
def test_the_real_package_answers_a_task_of_one_s_own(tasks, capsys):
    words = ["eval", str(EXPORT), "--tasks", "next_word", "--tasks-path", str(tasks)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]["next_word"]
    assert found["acc,none"] == 0.5  # the same question with each answer
    assert found["acc_stderr,none"] == pytest.approx(0.5)  # sqrt(0.5 / 2) of two answers
    assert main([*words[:3], "another", *words[4:]]) == 2
    assert "'another' is not a known task" in " ".join(capsys.readouterr().err.replace(":", "").split())


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for the package that notes how it is called."""
    asked = {}

    def simple_evaluate(**options):
        asked.update(options)
        return {"results": {"next_word": {"acc,none": 0.5, "alias": "next_word"}}}

    def manager(**options):
        asked.update(options)
        return SimpleNamespace(all_tasks=["next_word"])

    package, tasks_module = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
    package.simple_evaluate, tasks_module.TaskManager = simple_evaluate, manager
    package.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks_module)
    task_manager.cache_clear()
    yield asked
    task_manager.cache_clear()


def test_a_model_brings_no_code_and_nothing_is_fetched(tasks, harness):
    import os

    assert run_tasks(str(EXPORT), ["next_word"], str(tasks), 7) == {"next_word": {"acc,none": 0.5}}
    assert harness["model_args"] == {"pretrained": str(EXPORT), "dtype": "auto", "trust_remote_code": False}
    assert (harness["include_path"], harness["include_defaults"], harness["limit"]) == (str(tasks), False, 7)
    assert {os.environ[name] for name in OFFLINE} == {"1"}
    with pytest.raises(UserError, match="is not a known task"):
        run_tasks(str(EXPORT), ["another"], str(tasks))


def test_what_cannot_be_evaluated_is_one_line(tmp_path, harness, monkeypatch):
    with pytest.raises(UserError, match="rewarm export"):
        run_tasks(str(tmp_path), ["next_word"])
    with pytest.raises(UserError, match="is not a folder"):
        run_tasks(str(EXPORT), ["next_word"], str(tmp_path / "nowhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package lm-eval"):
        run_tasks(str(EXPORT), ["next_word"])


@pytest.mark.parametrize(
    ("words", "line"),
    [([], "--data: is missing"), (["--data", "x", "--limit", "3"], "have no effect without --tasks")],
)
def test_flags_without_effect_are_refused(words, line, capsys):
    assert main(["eval", str(EXPORT), *words]) == 2
    assert line in capsys.readouterr().err


def test_what_tasks_need_is_checked_before_shards_are_scored(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["eval", str(EXPORT), "--data", "nowhere", "--tasks", "next_word"]) == 2
    assert "needs the package lm-eval" in capsys.readouterr().err
