"""Files that come with rewarm, wherever it is: beside the code in a clone, below `share/` from a wheel."""

from __future__ import annotations

import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]


def shipped(folder: str) -> Path:
    """Return a folder that ships: `ds_configs`, `launch/recipes`."""
    beside = CLONE / folder
    installed = Path(sys.prefix) / "share" / "rewarm" / folder
    target = CLONE / "share" / "rewarm" / folder  # of `pip install --target`
    return next((place for place in (beside, installed, target) if place.is_dir()), beside)


def train_program() -> list[str]:
    """Return what the launcher starts on every rank, before the recipe: a script; of a wheel a module."""
    script = CLONE / "launch" / "train.py"
    return [str(script)] if script.is_file() else ["--module", "trainer.cli.main", "train"]


def train_words() -> str:
    """Return what a user types after `deepspeed` and before the recipe."""
    return "launch/train.py" if Path(train_program()[0]).is_file() else "--no_python rewarm train"


def find_preset(path: str | Path) -> Path:
    """Return where a ds_config is: at its path, or if nothing is there, the shipped one of that name."""
    path = Path(path)
    own = shipped("ds_configs") / path.name
    return own if not path.exists() and path.parent.name == "ds_configs" and own.is_file() else path


def find_recipe(path: str) -> str:
    """Return where a recipe is: at its path, or if nothing is there, the shipped `launch/recipes/NAME`."""
    own = shipped("launch/recipes") / Path(path).name
    named = Path(path).parent == Path("launch/recipes")
    return str(own) if named and not Path(path).exists() and own.is_file() else path
