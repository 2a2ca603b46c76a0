"""Averaged weights in a checkpoint: saved beside the weights, restored on other ranks, pulled with them."""

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.fragments import fragment
from tokenization.errors import UserError
from trainer.checkpoint.base import pull_to_base
from trainer.checkpoint.rank_files import Reader, write_rank_file
from trainer.storage.fragment import AVERAGE

WHOLE = torch.arange(12.0)


def part(start, stop, **tensors):
    return fragment(
        "w", start, (3, 4), True, {name: one[start:stop].clone() for name, one in tensors.items()}
    )


def test_an_average_is_read_back_however_it_is_cut(tmp_path):
    for rank, (start, stop) in enumerate(((0, 5), (5, 12))):
        own = part(start, stop, weight=WHOLE, **{AVERAGE: WHOLE / 7})
        write_rank_file(tmp_path / f"rank-{rank:05d}.safetensors", [own])
    reader = Reader(sorted(tmp_path.glob("rank-*")))
    target = part(3, 9, weight=torch.zeros(12), **{AVERAGE: torch.zeros(12)})
    reader.fill(target, target.tensors)
    assert torch.equal(target.tensors[AVERAGE], WHOLE[3:9] / 7)
    assert reader.has_average
    (averaged,), (plain,) = reader.weights(average=True), reader.weights()
    assert torch.equal(averaged.make(), (WHOLE / 7).view(3, 4))
    assert torch.equal(plain.make(), WHOLE.view(3, 4))


def test_an_average_that_was_not_saved_begins_with_the_weight(tmp_path):
    write_rank_file(tmp_path / "rank-00000.safetensors", [part(0, 12, weight=WHOLE)])
    reader = Reader([tmp_path / "rank-00000.safetensors"])
    target = part(0, 12, weight=torch.zeros(12), **{AVERAGE: torch.ones(12)})
    reader.fill(target, target.tensors)
    assert torch.equal(target.tensors[AVERAGE], WHOLE)
    assert not reader.has_average


class Engine:
    """An engine of these fragments."""

    def __init__(self, *fragments):
        self.owned = fragments
        self.shapes = {one.name: one.shape for one in fragments}
        self.calls = []
        self.before_update = lambda: self.calls.append("wait")

    def fragments(self, change=False):
        return iter(self.owned)

    def refresh(self):
        self.calls.append("refresh")


def test_weights_and_averages_are_pulled_to_a_base_in_hugging_face_form(tmp_path):
    name = "hf.model.norm.weight"
    save_file({"model.norm.weight": torch.full((12,), 4.0)}, tmp_path / "model.safetensors")
    tensors = {"weight": WHOLE[5:9].clone(), "exp_avg": WHOLE[5:9].clone(), AVERAGE: torch.zeros(4)}
    own = fragment(name, 5, (12,), True, tensors)
    engine = Engine(own)
    pull_to_base(engine, tmp_path, {"model_type": "llama"}, 0.25)
    assert torch.equal(own.tensors["weight"], 0.75 * WHOLE[5:9] + 1)
    assert torch.equal(own.tensors[AVERAGE], torch.ones(4))
    assert torch.equal(own.tensors["exp_avg"], WHOLE[5:9])
    assert engine.calls == ["wait", "refresh"]


def test_a_base_of_another_shape_is_not_pulled_to(tmp_path):
    save_file({"model.norm.weight": torch.zeros(6)}, tmp_path / "model.safetensors")
    own = fragment("hf.model.norm.weight", 0, (12,), True, {"weight": WHOLE.clone()})
    with pytest.raises(UserError, match="lower_lr"):
        pull_to_base(Engine(own), tmp_path, {"model_type": "llama"}, 0.25)
    assert torch.equal(own.tensors["weight"], WHOLE)
