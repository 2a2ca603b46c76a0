"""Bad input: a line that names file, field, value and fix; status 2; no process group, no traceback."""

import os

import pytest

from tests.helpers import runs
from tokenization.errors import UserError
from trainer.cli.main import main
from trainer.recipe import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data, tmp_path, capsys, monkeypatch):
    """Starts a run whose recipe was changed; the lines of standard error."""

    def start(*overrides, ranks=1, text=None, **changes):
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        file = runs.write(runs.recipe(data, tmp_path / "run", **changes), tmp_path / "recipe.yaml")
        if text is not None:
            file.write_text(text(file.read_text()))
        assert main(["train", str(file), *overrides]) == 2
        return capsys.readouterr().err.strip().splitlines()

    return start


def test_unknown_field_with_the_nearest_known_one(train):
    (line,) = train("phases.0.schedule.max_lrr=1e-4")
    assert "recipe.yaml: phases.0.schedule.max_lrr: is not a known field" in line
    assert "did you mean 'max_lr'?" in line


def test_duplicate_key(train):
    (line,) = train(text=lambda text: text + "seq_len: 64\n")
    assert "recipe.yaml: line" in line
    assert "'seq_len' appears twice" in line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("phases.0.mixture=[]", "phases.0.mixture: must have at least 1 item"),
        ("phases.²=3", "phases.²: '²' is not an item of the list; use 0 to 0"),
        ("phases.0.schedule.max_lr=1e400", "phases.0.schedule.max_lr: '1e400' is too large"),
        ("phases.0.schedule.start_lr=1e400", "phases.0.schedule.start_lr: '1e400' is too large"),
        ("phases.0.tokens=1e30", "phases.0.tokens: '1e30' is larger than the largest count, 1e+18"),
        ("phases.0.tokens=1e999999999", "phases.0.tokens: '1e999999999' is not a number"),
        ("phases.0.schedule.warmup=1/2/3", "phases.0.schedule.warmup: '1/2/3' is not a number"),
        ("sources.zh.block=1e30", "sources.zh.block: '1e30' is larger than the largest count"),
        ("global_batch_size=1e30", "global_batch_size: '1e30' is larger than the largest count"),
        ("seed=1e30", "seed: '1e30' is larger than the largest count"),
        ("seed=!!int foo", "seed: 'foo' is not a number"),
        ("optimizer.beta1=2", "optimizer.beta1: '2' must be less than 1"),
        ("optimizer.beta2=1", "optimizer.beta2: '1' must be less than 1"),
        ("optimizer.eps=0", "optimizer.eps: '0' must be greater than 0"),
        ("name=[", "name: '[' is not a YAML value (while parsing a flow node"),
        (
            "name={[a]: 1}",
            "name: '{[a]: 1}' is not a YAML value (line 1: has a list or mapping as a field name",
        ),
        (
            "run_dir=/etc/passwd/x",
            "run_dir: '/etc/passwd/x' cannot be created: a parent path is a file; choose another run_dir",
        ),
    ],
)
def test_a_value_that_cannot_be_is_one_line(train, override, told):
    (line,) = train(override)
    assert told in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("? [a]\n: 1\n", "line 1: has a list or mapping as a field name; field names must be plain strings"),
        ("{{a: 1}: 2}", "line 1: has a list or mapping as a field name"),
        ("a: !!timestamp foo\n", "a: is not a known field"),
        ("a: " + "[" * 3000, "is not YAML (maximum recursion depth"),
    ],
    ids=["a list as a name", "a mapping as a name", "a tag", "deep"],
)
def test_yaml_that_cannot_be_a_recipe(train, text, told):
    lines = train(text=lambda _: text)
    assert any(f"recipe.yaml: {told}" in line for line in lines)


def test_a_phase_that_is_replaced_by_its_name(train):
    lines = train("phases.phase-0={name: x}")
    assert [line.partition("phases.0.")[2] for line in lines] == [
        f"{field}: is required and missing" for field in ("tokens", "mixture", "schedule")
    ]


def test_a_batch_of_a_trillion_samples_is_cut_at_once(train):
    lines = train("global_batch_size=1e12", "micro_batch_size=3")
    assert "3 does not divide the 1000000000000 samples" in lines[0]
    assert len(lines[0]) < 400


def test_missing_shard(train, data):
    (line,) = train(f"sources.zh.path={data}/nothing")
    assert "sources.zh.path" in line
    assert f"{data}/nothing" in line


def test_shards_of_another_tokenizer(train, data):
    other = data / "other"
    if not other.exists():
        runs.train_vocabulary([data / "corpus.txt"], 400, other)
    lines = train(f"model.tokenizer={other}")
    assert len(lines) == 4  # two sources, two validation sets
    assert all("was made with tokenizer" in line for line in lines)
    assert any("sources.zh.path" in line for line in lines)


def test_indivisible_batch(train):
    (line,) = train("micro_batch_size=3")
    assert "micro_batch_size: 3 does not divide the 8 samples" in line
    assert "[1, 2, 4, 8]" in line


def test_more_ranks_than_samples(train):
    (line,) = train(ranks=16)
    assert "global_batch_size: 8 does not divide evenly among 16 ranks" in line
    assert "use 16" in line


def test_run_directory_of_another_run(train, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.resolved.yaml").write_text("name: somebody-else\n")
    (line,) = train()
    assert "run_dir" in line
    assert "'somebody-else'" in line


def test_run_directory_of_something_else(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    (line,) = train()
    assert "is not empty and does not hold a run" in line
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


def test_no_such_recipe(capsys):
    assert main(["train", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: cannot be read (No such file or directory)" in capsys.readouterr().err


def test_words_in_another_order_or_with_spaces_are_told(train, capsys):
    assert main(["plan", "seed=3", "recipe.yaml"]) == 2
    assert "give the path of a recipe before the field=value" in capsys.readouterr().err
    (line,) = train("seed", "=", "3")
    assert "'seed' is not field=value; write it without spaces" in line
    with pytest.raises(SystemExit):
        main(["plan"])
    error = "rewarm plan: error: the following arguments are required: recipe; see rewarm plan --help\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["plan", "r.yaml", "--world_size=2"], "did you mean '--world-size'?; see rewarm plan --help"),
        (
            ["submit", "r.yaml", "--nodes=1", "--time=8:00:00"],
            "an option of sbatch is given as --sbatch=--time=…; see rewarm submit --help",
        ),
        (["data", "inspect", "x", "y"], "unrecognized arguments: y; see rewarm data inspect --help"),
    ],
)
def test_an_option_that_is_not_one_is_told_with_the_one_that_may_be_meant(words, line, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(line)


def test_a_tokenizer_that_is_not_there_is_named_with_its_field(train):
    (line,) = train("model.tokenizer=nowhere")
    assert line.startswith("rewarm: model.tokenizer: nowhere: does not exist; name a tokenizer's directory")


def test_a_source_that_runs_out(train):
    (line,) = train("sources.zh.max_epochs=1/100")
    assert "sources.zh.max_epochs" in line
    assert "run out at token" in line


def test_a_field_of_the_recipe_in_the_ds_config(train, tmp_path):
    preset = tmp_path / "mine.json"
    preset.write_text('{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true}, "train_batch_size": 8}')
    lines = train(f"deepspeed={preset}")
    assert any("fp16: is set by the recipe, not by the ds_config; set model.dtype" in line for line in lines)
    assert any("train_batch_size: is set by the recipe" in line for line in lines)


def test_model_of_another_size_than_the_tokenizer(train):
    (line,) = train("model.init.vocab_size=100")
    assert "model.init.vocab_size" in line


def test_all_problems_are_told_at_once(train, data):
    lines = train(
        f"sources.zh.path={data}/nothing", "deepspeed=nowhere.json", f"validation.upstream={data}/none"
    )
    assert len(lines) == 3


def test_a_later_rank_leaves_the_word_to_the_first_and_then_tells_its_own(tmp_path, capsys, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setitem(os.environ, name, value)
    status = tmp_path / "status"
    monkeypatch.setitem(os.environ, "REWARM_STATUS", str(status))
    said_before: list[str] = []
    monkeypatch.setattr(
        "trainer.machine.signals.time.sleep", lambda s: said_before.append(capsys.readouterr().err)
    )
    assert main(["train", str(tmp_path / "nowhere.yaml")]) == 2
    assert said_before == [""]
    assert status.read_text() == "2\n"
    assert capsys.readouterr().err.startswith("rewarm: rank 1: ")


def test_an_incomplete_launcher_environment_is_one_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "RANK", "first")
    assert main(["train", str(tmp_path / "nowhere.yaml")]) == 2
    assert "the launcher's environment is incomplete" in capsys.readouterr().err


def test_merge_keys_bring_in_fields_and_what_is_written_beside_them_wins(data, tmp_path):
    whole = runs.recipe(data, tmp_path / "run")
    rest = runs.write({**whole, "sources": None}, tmp_path / "recipe.yaml").read_text()
    sources = (
        "sources:\n"
        f"  en: &one {{path: {data}/en, role: replay, max_epochs: 4}}\n"
        f"  zh: {{<<: *one, path: {data}/zh, role: new}}\n"
    )
    merged = rest.replace("sources: null\n", sources)
    assert load.parse_recipe(merged) == load.load_recipe(runs.write(whole, tmp_path / "recipe.yaml"))
    with pytest.raises(UserError, match="'role' appears twice"):
        load.parse_recipe(merged.replace("role: new", "role: new, role: replay"))
