"""What a machine lacks is named before the ranks meet."""

from __future__ import annotations

import pytest

from tokenization.errors import UserErrors
from trainer.engine.requirements import check_machine

PRESET = {"zero_optimization": {"stage": 1}}


def test_compiled_layers_need_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    check_machine(PRESET, "fp32")
    with pytest.raises(UserErrors, match=r"model\.compile: True needs a compiler \(no-such-compiler\)"):
        check_machine(PRESET, "fp32", compiled=True)
    monkeypatch.setenv("CXX", "sh")
    check_machine(PRESET, "fp32", compiled=True)
