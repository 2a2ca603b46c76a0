"""What a start makes of damaged checkpoints: the newest good one, named reasons, never the base unasked."""

import errno
import os

import pytest
import yaml

from tests.helpers import runs
from tests.helpers.checkpoints import fragments, position, savers
from tokenization.errors import ExitCode, InfrastructureError, UserError
from trainer.checkpoint import history, manifest
from trainer.checkpoint.manifest import MANIFEST, MARKER
from trainer.cli.main import main
from trainer.plan.make import make_plan
from trainer.recipe import load
from trainer.storage.run_directory import RunDirectory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(data, tmp_path):
    """A recipe whose run has checkpoints at steps 4 and 8."""
    file = runs.write(runs.recipe(data, tmp_path / "run"), tmp_path / "recipe.yaml")
    recipe = load.load_recipe(file, [])
    state = make_plan(recipe, 1).decision.state
    (one,) = savers(RunDirectory(recipe.directory).checkpoints)
    for step in range(1, 9):
        state = state.after_step(8, lr=1e-3, trained=True)
        if step % 4 == 0:
            one.open_directory(step, needed=1)
            one.save(position(step, tokens=state.tokens, state=state.to_json()), [fragments()])
            assert one.wait() is None
    (recipe.directory / "recipe.resolved.yaml").write_text(yaml.safe_dump({"name": recipe.name}))
    return recipe


def hidden(path):
    """In place of a directory that may not be read, which the superuser always may."""
    path.rename(path.with_name(f"away-{path.name}"))
    path.symlink_to(path.with_name("nowhere"))


DAMAGES = {
    "marker missing": lambda path: (path / MARKER).unlink(),
    "marker flipped": lambda path: (path / MARKER).write_bytes(b"0" * 32),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "manifest truncated": lambda path: os.truncate(path / MANIFEST, 100),
    "file missing": lambda path: (path / "rank-00000.safetensors").unlink(),
    "file truncated": lambda path: os.truncate(path / "rank-00000.safetensors", 100),
    "unreadable": hidden,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_good_one_is_used_and_the_damaged_one_named(recipe, damage):
    folder = RunDirectory(recipe.directory).checkpoints
    DAMAGES[damage](folder / "step-00000008")
    plan = make_plan(recipe, 1)
    assert plan.decision.kind == "restore"
    assert plan.checkpoint is not None
    assert plan.checkpoint.path == folder / "step-00000004"
    assert plan.decision.state.step == 4
    (line,) = plan.broken
    assert str(folder / "step-00000008") in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_no_good_one_left_the_run_stops_with_the_reasons(recipe, damage, tmp_path, capsys, monkeypatch):
    folder = RunDirectory(recipe.directory).checkpoints
    for step in (4, 8):
        DAMAGES[damage](folder / history.name_of(step))
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert main(["train", str(tmp_path / "recipe.yaml")]) == ExitCode.USER, "a requeue would never end"
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no checkpoint is good" in line
    assert "step-00000004" in line
    assert "step-00000008" in line
    assert "choose another run_dir" in line


def test_those_that_turned_out_to_be_damaged_are_not_tried_again(recipe):
    folder = RunDirectory(recipe.directory).checkpoints
    newer, older = folder / "step-00000008", folder / "step-00000004"
    plan = make_plan(recipe, 1, skip={newer: "flipped"})
    assert plan.decision.state.step == 4
    with pytest.raises(UserError, match=r"no checkpoint is good \(flipped; torn\)"):
        make_plan(recipe, 1, skip={newer: "flipped", older: "torn"})


def test_a_disk_that_fails_may_come_back(recipe, monkeypatch):
    folder = RunDirectory(recipe.directory).checkpoints
    DAMAGES["marker flipped"](folder / "step-00000004")
    read = manifest.Path.read_bytes

    def failing(path):
        if "step-00000008" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(manifest.Path, "read_bytes", failing)
    with pytest.raises(InfrastructureError, match=r"no checkpoint is good .*Input/output error.*restore one"):
        make_plan(recipe, 1)


@pytest.mark.parametrize(
    ("loss", "error"), [("gone", UserError), ("not mounted", InfrastructureError), ("a file", UserError)]
)
def test_checkpoints_that_are_lost_together_are_not_taken_for_a_fresh_start(recipe, loss, error):
    folder = RunDirectory(recipe.directory).checkpoints
    folder.rename(folder.with_name("elsewhere"))
    if loss == "not mounted":
        folder.symlink_to(folder.with_name("nowhere"))
    elif loss == "a file":
        folder.write_text("")
    with pytest.raises(error, match=r"checkpoints: (no checkpoint is good|cannot be read)"):
        make_plan(recipe, 1)
