"""The command line: every command helps with an example, and answers in JSON where its answer is data."""

import argparse
import ast
import json
import re

import pytest

from tests.helpers import runs
from trainer.cli.main import build_parser, main
from trainer.machine.devices import has_cuda


def commands(parser, path=()):
    """Every command's words and parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield path, parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands(inner, (*path, name))


@pytest.mark.parametrize("words", [words for words, _ in commands(build_parser())], ids=" ".join)
def test_every_command_helps_with_an_example(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert f"example: rewarm {' '.join(words)} " in " ".join(capsys.readouterr().out.split())


def test_the_version_is_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"rewarm \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_every_argument_says_what_it_is_and_what_holds_without_it():
    for words, parser in commands(build_parser()):
        for action in parser._actions:
            where = f"{' '.join(words)} {(action.option_strings or [action.dest])[0]}"
            assert action.help, where
            # A flag is off without it; -h never has a value.
            if action.option_strings and action.nargs != 0 and action.default not in (None, "", []):
                assert "default" in action.help, where


def flags_in_errors():
    """(file, flag) of each flag that the text of an error names: its fix tells a user to give it."""
    for room in ("trainer", "tokenization", "launch"):
        for file in sorted((runs.ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                error = isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error")
                fix = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "fix"
                for text in ast.walk(node) if error or fix else ():
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.value):
                            yield file.name, flag


def test_every_flag_that_an_error_names_is_there():
    known = {option for _, parser in commands(build_parser()) for option in parser._option_string_actions}
    named = set(flags_in_errors())
    assert len(named) > 10
    known |= {"--repo-type", "--master", "--num"}  # of `hf download` and of `deepspeed`: --master_port
    # texts.py is a script of its own.
    assert [one for one in named if one[1] not in known and one[0] != "texts.py"] == []


@pytest.mark.parametrize("added", ["--local_rank=1", "--local-rank=1"])
def test_a_launcher_may_start_the_command_itself(added, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rewarm", added, "recipe", "reference"])
    assert main() == 0
    assert "global_batch_size" in capsys.readouterr().out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(data, tmp_path):
    return str(runs.write(runs.recipe(data, tmp_path / "run", phases=2), tmp_path / "recipe.yaml"))


def answer(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_plan_in_json(recipe, capsys):
    plan = json.loads(answer(capsys, "plan", recipe, "--json", "--world-size", "2", "--lr-at", "0,768,3072"))
    assert plan["decision"]["kind"] == "start"
    assert plan["decision"]["reason"]
    assert plan["decision"]["diff"] == []
    # 12 steps of 256 tokens; 25 % are warm-up, so 768 tokens on the LR is max_lr, and 3072 begins phase 2.
    assert plan["lr_at"] == [
        {"tokens": 0, "lr": 0.0},
        {"tokens": 768, "lr": 0.01},
        {"tokens": 3072, "lr": 0.0},
    ]
    sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 1, "sequence_parallel_size": 1}
    assert plan["layout"] == {"world_size": 2, **sizes}
    assert [(row["tokens"], row["steps"], row["max_lr"]) for row in plan["phases"]] == [(3072, 12, 0.01)] * 2
    ends = {(row["phase"], row["source"]): row["tokens"] for row in plan["sources"]}
    assert ends["phase-0", "zh"] == 3072 // 4
    assert ends["phase-1", "zh"] + ends["phase-1", "en"] == 2 * 3072


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--lr-at", "foo", "'foo' is not a number"),
        ("--lr-at", "0,", "'' is not a number"),
        ("--lr-at", "1.5", "'1.5' is not a whole number of at least 0"),
        ("--lr-at", "-1", "'-1' is not a whole number of at least 0"),
        ("--world-size", "0", "'0' is not a whole number of at least 1"),
        ("--world-size", "-1", "'-1' is not a whole number of at least 0"),
        ("--world-size", "two", "'two' is not a number"),
    ],
)
def test_a_wrong_number_is_refused_with_its_flag(recipe, capsys, flag, value, message):
    with pytest.raises(SystemExit) as ended:
        main(["plan", recipe, f"{flag}={value}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: argument \S*{flag}: {re.escape(message)}", told)


def test_a_cap_beyond_all_numbers_is_not_a_cap(recipe, capsys):
    assert "no source repeats" in answer(capsys, "plan", recipe, "sources.zh.max_epochs=1e20")


def test_plan_in_words(recipe, capsys):
    words = answer(capsys, "plan", recipe)
    for said in ("decided  start", "phase-1", "no source repeats", "tokens per step", "per checkpoint"):
        assert said in words
    assert words.endswith(f"\n\ntrain    deepspeed launch/train.py {recipe}\n")
    assert "--gpu or --gpu-memory names one" in words or has_cuda()
    named = answer(capsys, "plan", recipe, "--gpu-memory", "80", "seed=1")
    assert "--gpu or --gpu-memory names one" not in named
    assert named.endswith(f" {recipe} seed=1\n")


def test_plan_of_a_refusal_is_status_2(recipe, capsys):
    assert main(["plan", recipe, "--json", "allow=[]"]) == 2
    refusals = json.loads(capsys.readouterr().out)["decision"]["refusals"]
    assert refusals[0]["name"] == "rewarm_on_same_data"


def test_simulate_gives_rows_and_shares(recipe, capsys):
    lines = answer(capsys, "data", "simulate", recipe, "--samples", "0:8", "--json").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["i"] for row in rows] == list(range(8))
    assert set(rows[0]) == {"i", "phase", "source", "index", "epoch"}
    assert sum(row["source"] == "zh" for row in rows) == 2
    table = answer(capsys, "data", "simulate", recipe, "--samples", "0:8")
    assert ["zh", "2", "0.250000", "0.250000", "+0.000"] in [line.split()[:5] for line in table.splitlines()]


def test_simulate_follows_a_log_of_decisions(data, tmp_path, capsys):
    tree = runs.recipe(data, tmp_path / "run")
    tree["phases"][0]["mixture"] = {"forgetting_budget": 0.02, "replay_ratio": "25%", "decide_every": "10%"}
    file = str(runs.write(tree, tmp_path / "recipe.yaml"))
    words = ("data", "simulate", file, "--samples", "48:96", "--shares", "--json")
    plain = json.loads(answer(capsys, *words))["shares"]
    log = tmp_path / "decisions.jsonl"
    log.write_text('{"phase": 0, "applies_from": 48, "replay": 512, "of": 1024}\n')
    decided = json.loads(answer(capsys, *words, "--decisions", str(log)))["shares"]
    assert [{one["source"]: one["samples"] for one in shares}["en"] for shares in (plain, decided)] == [
        12,
        24,
    ]


def test_simulate_gives_the_shares_alone_for_a_window_of_any_length(recipe, capsys):
    words = ("data", "simulate", recipe, "--samples", "0:192", "--shares")
    shares = {one["source"]: one for one in json.loads(answer(capsys, *words, "--json"))["shares"]}
    assert shares["zh"]["samples"] + shares["en"]["samples"] == 192
    # a quarter of the first phase's 96 samples, four fifths of the second's
    assert shares["zh"]["samples"] == pytest.approx(96 / 4 + 96 * 4 / 5, abs=1)
    assert 0 < shares["zh"]["coverage"] < 1
    table = answer(capsys, *words).splitlines()
    assert [line.split()[0] for line in table] == ["source", "------", "en", "zh"]


@pytest.mark.parametrize("window", ["8", "5:2", "a:b", "0:100000000"])
def test_simulate_refuses_what_is_not_a_window(recipe, capsys, window):
    assert main(["data", "simulate", recipe, "--samples", window]) == 2
    assert window in capsys.readouterr().err


def test_inspect_reads_all_of_a_shard(data, capsys):
    shard = json.loads(answer(capsys, "data", "inspect", str(data / "en"), "--json"))
    assert shard["documents"] == 500
    assert shard["utf8_bytes"] > shard["tokens"]
    assert 1 < shard["shortest"] <= shard["longest"]
