"""What ships is found beside the code, from a wheel, and only where the user has nothing of that name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import runs
from trainer.cli.main import main
from trainer.engine.ds_config import read_preset
from trainer.storage import shipped as module
from trainer.storage.shipped import find_preset, find_recipe, shipped, train_program, train_words

RECIPE = "launch/recipes/quickstart.yaml"


def test_a_clone_and_a_wheel_have_the_same_files(tmp_path, monkeypatch):
    beside = shipped("ds_configs")
    assert beside == runs.ROOT / "ds_configs"
    installed = tmp_path / "share" / "rewarm" / "ds_configs"
    installed.mkdir(parents=True)
    (installed / "zero2.json").write_text((beside / "zero2.json").read_text())
    monkeypatch.setattr(module, "CLONE", tmp_path / "site-packages")
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert shipped("ds_configs") == installed
    assert find_preset("ds_configs/zero2.json") == installed / "zero2.json"
    assert read_preset("ds_configs/zero2.json")["zero_optimization"]["stage"] == 2


def test_a_file_of_the_user_s_comes_first_and_another_name_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert read_preset("ds_configs/zero2.json")["zero_optimization"]["stage"] == 1
    for path in ("ds_configs/mine.json", "elsewhere/zero2.json", "zero2.json"):
        assert find_preset(path) == Path(path)


def test_a_shipped_recipe_is_planned_where_no_clone_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", RECIPE]) == 0
    assert "start: the run begins" in capsys.readouterr().out
    (tmp_path / "launch" / "recipes").mkdir(parents=True)
    (tmp_path / "launch" / "recipes" / "quickstart.yaml").write_text("name: mine")
    for path in (
        "launch/recipes/quickstart.yaml",
        "launch/recipes/gone.yaml",
        "recipes/quickstart-base.yaml",
    ):
        assert find_recipe(path) == path


def test_without_a_clone_the_launcher_starts_the_module(tmp_path, monkeypatch):
    assert (train_program(), train_words()) == ([str(runs.SCRIPT)], "launch/train.py")
    monkeypatch.setattr(module, "CLONE", tmp_path)
    assert train_program() == ["--module", "trainer.cli.main", "train"]
    assert train_words() == "--no_python rewarm train"


@pytest.mark.slow
def test_the_wheel_plans_a_shipped_recipe_in_an_empty_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("trainer", "tokenization", "ds_configs", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(runs.ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(runs.ROOT / name, source)
    words = ["-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([sys.executable, *words], cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("rewarm-*.whl")
    held = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    for folder in ("ds_configs", "launch/recipes"):
        assert {file.name for file in (runs.ROOT / folder).iterdir()} <= held
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    words = ["-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=300)
    words = ["-c", "import trainer; print(trainer.__file__)"], ["-m", "trainer.cli.main", "plan", RECIPE]
    for arguments, said in zip(words, (str(target), "start: the run begins"), strict=True):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=empty,
            env={**runs.environment(), "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        assert said in done.stdout
