"""A shell completes commands and flags by a script that `rewarm` prints."""

import importlib.util
import subprocess

import pytest

from trainer.cli.main import main


@pytest.mark.skipif(importlib.util.find_spec("shtab") is None, reason="shtab is an extra")
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_names_every_command_and_its_flags(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for word in ("prepare", "overlap", "--clean-validation", "--against"):
        assert word in text
    if shell == "bash":
        script = tmp_path / "completion"
        script.write_text(text)
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_without_the_package_a_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err
