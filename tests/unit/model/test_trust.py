"""A model or a tokenizer from elsewhere runs no code and no pickle, and names no file outside its folder."""

import json
import pickle

import pytest
import torch

from tests.helpers.model_tiny import CHINESE, ENGLISH, INIT, build, recipe, tokenizer
from tests.recorded.jobs import MADE
from tokenization.errors import UserError
from tokenization.tokenizer.files import open_tokenizer
from tokenization.tokenizer.proof import difference
from trainer.model.build import load_model
from trainer.storage.weight_files import weight_paths

PIECES = 90
TRAP = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\n"


@pytest.fixture
def trap(tmp_path):
    """Python files that leave a mark when they are run, and the mark."""
    mark, folder = tmp_path / "mark", tmp_path / "model"
    folder.mkdir()
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (folder / name).write_text(TRAP.format(mark=str(mark)))
    return folder, mark


def edit(file, **fields):
    held = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**held, **fields}), encoding="utf-8")


def test_code_that_comes_with_a_model_is_not_run(trap):
    folder, mark = trap
    build(recipe(**INIT["llama"]), PIECES).hf.save_pretrained(folder)
    names = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    edit(folder / "config.json", auto_map=names)
    load_model(str(folder), PIECES)
    assert not mark.exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(trap):
    folder, mark = trap
    for file in (MADE / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    difference(folder, open_tokenizer(folder))
    assert not mark.exists()


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (exec, (TRAP.format(mark=self.mark),))


@pytest.mark.parametrize("named", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_loaded_whatever_its_name(trap, named):
    folder, mark = trap
    build(recipe(**INIT["llama"]), PIECES).hf.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / named).write_bytes(pickle.dumps(Payload(str(mark))))
    with pytest.raises(UserError):
        load_model(str(folder), PIECES)
    torch.save({"w": torch.zeros(1)}, folder / named)
    with pytest.raises(UserError):
        load_model(str(folder), PIECES)
    assert not mark.exists()


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path):
    index = {"weight_map": {"w": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside of the model"):
        weight_paths(tmp_path)


def test_a_tokenizer_s_files_are_read_as_data(tmp_path):
    folder = tokenizer(tmp_path / "tok", *ENGLISH, *CHINESE)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            (folder / name).write_bytes(pickle.dumps(Payload(str(tmp_path / "mark"))))
    with pytest.raises(UserError):
        open_tokenizer(folder)
    assert not (tmp_path / "mark").exists()
