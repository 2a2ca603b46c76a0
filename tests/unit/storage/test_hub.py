"""What a name that is not a folder here may be: a hub id, or a path that somebody has misspelt."""

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from tokenization.errors import ExitCode, InfrastructureError, UserError
from trainer.storage.hub import fetch_from_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A working directory, and a hub that answers with an error; every name that it is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def answer(error):
        def download(name, **_):
            asked.append(name)
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return answer


def caused(cause):
    error = LocalEntryNotFoundError("nothing is cached")
    error.__cause__ = cause
    return error


class Answer:
    """As much of an HTTP answer as an error holds."""

    def __init__(self, status_code):
        self.status_code, self.headers, self.request = status_code, {}, None


@pytest.mark.parametrize(
    "name", ["models/bsae", "bases/x", "./a/b", "/a/b", "a/b/c", "name", "Runs/x", "mine/x"]
)
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(hub, tmp_path, name):
    asked = hub(caused(ConnectionError()))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="does not exist") as caught:
        fetch_from_hub(name, ["config.json"], "model.base")
    assert caught.value.exit_code == ExitCode.USER
    assert asked == []


def test_a_misspelt_folder_is_told_its_neighbour(hub, tmp_path):
    hub(caused(ConnectionError()))
    (tmp_path / "models" / "base").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model.base: 'models/bsae' does not exist; did you mean 'base'\?"):
        fetch_from_hub("models/bsae", ["config.json"], "model.base")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (caused(ConnectionError("no route")), InfrastructureError),
        (caused(OfflineModeIsEnabled("offline")), UserError),
        (HfHubHTTPError("busy", response=Answer(503)), InfrastructureError),
        (HfHubHTTPError("no such model", response=Answer(404)), UserError),
        (HfHubHTTPError("a licence must be accepted", response=Answer(403)), UserError),
        (ValueError("not an id"), UserError),
    ],
)
def test_only_what_goes_away_by_itself_is_requeued(hub, error, kind):
    asked = hub(error)
    with pytest.raises(kind, match="org/name"):
        fetch_from_hub("org/name", ["config.json"], "model.base")
    assert asked == ["org/name"]
