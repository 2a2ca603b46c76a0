"""Fragments survive any change of topology, and the file is what safetensors says it is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tests.helpers.fragments import fragment
from tokenization import disk
from tokenization.errors import InfrastructureError
from trainer.checkpoint import rank_files
from trainer.storage.fragment import Fragment


def cut(name: str, whole: dict[str, torch.Tensor], bounds: list[int]) -> list[Fragment]:
    """A parameter's fragments, cut at `bounds`."""
    shape = tuple(whole["weight"].shape)
    return [
        fragment(
            name, begin, shape, True, {kind: t.flatten()[begin:end].clone() for kind, t in whole.items()}
        )
        for begin, end in itertools.pairwise(bounds)
    ]


def bounds_of(elements: int, inner: list[int]) -> list[int]:
    return [0, *sorted({cut % elements for cut in inner} - {0}), elements]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    saved=st.lists(st.integers(0, 63), max_size=4),
    wanted=st.lists(st.integers(0, 63), max_size=4),
)
def test_any_cut_is_read_by_any_other_cut(tmp_path_factory, rows, columns, saved, wanted):
    folder = tmp_path_factory.mktemp("cut")
    whole = {kind: torch.randn(rows, columns) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    files, checksums = [], []
    for rank, part in enumerate(cut("w", whole, bounds_of(rows * columns, saved))):
        files.append(folder / f"rank-{rank}.safetensors")
        checksums.append(rank_files.write_rank_file(files[-1], [part]).weights)
    reader = rank_files.Reader(files)
    got = cut(
        "w",
        {kind: torch.full((rows, columns), torch.nan) for kind in whole},
        bounds_of(rows * columns, wanted),
    )
    for part in got:
        reader.fill(part, part.tensors)
    for kind, tensor in whole.items():
        assert torch.equal(torch.cat([f.tensors[kind] for f in got]), tensor.flatten())
        assert torch.equal(reader.whole("w", kind), tensor)
    loaded = rank_files.add_checksums(rank_files.weight_checksums([f]) for f in got)
    assert loaded == rank_files.add_checksums(checksums)


def test_file_is_read_by_the_safetensors_library(tmp_path):
    weight = torch.arange(6, dtype=torch.float32)
    frozen = torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16)
    path = tmp_path / "rank-00000.safetensors"
    written = rank_files.write_rank_file(
        path,
        [
            fragment("b", 3, (6,), False, {"weight": frozen}),
            fragment("a", 0, (2, 3), True, {"weight": weight}),
        ],
    )
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["weight:a", "weight:b"]
        assert torch.equal(file.get_tensor("weight:a"), weight)
        assert torch.equal(file.get_tensor("weight:b"), frozen)
    assert written.size == path.stat().st_size
    assert written.checksum == disk.checksum(path)


def test_one_changed_or_moved_element_changes_the_weights_checksum():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    swapped = torch.tensor([2.0, 1.0, 3.0, 4.0])
    nudged = weight.clone()
    nudged[3] = torch.nextafter(nudged[3], torch.tensor(5.0))
    sums = {rank_files.position_checksum(0, t) for t in (weight, swapped, nudged)}
    assert len(sums) == 3
    # By hand: the bits of 1.0f are 0x3F800000; at position 5 they count 2 * 5 + 1 = 11 times.
    assert rank_files.position_checksum(5, torch.tensor([1.0])) == 0x3F800000 * 11


def test_moments_of_a_parameter_that_was_frozen_start_at_zero(tmp_path):
    path = tmp_path / "r.safetensors"
    rank_files.write_rank_file(path, [fragment("w", 0, (2,), False, {"weight": torch.tensor([1.0, 2.0])})])
    now = fragment("w", 0, (2,), True, {"weight": torch.zeros(2), "exp_avg": torch.ones(2)})
    rank_files.Reader([path]).fill(now, now.tensors)
    assert now.tensors["weight"].tolist() == [1.0, 2.0]
    assert now.tensors["exp_avg"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (fragment("other", 0, (2,), True, {"weight": torch.zeros(2)}), "other"),
        (fragment("w", 0, (1, 2), True, {"weight": torch.zeros(2)}), "shape"),
        (fragment("w", 0, (2,), True, {"weight": torch.zeros(3)}), "2 of 3 elements"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, wanted, said):
    path = tmp_path / "r.safetensors"
    rank_files.write_rank_file(path, [fragment("w", 0, (2,), True, {"weight": torch.tensor([1.0, 2.0])})])
    with pytest.raises(InfrastructureError, match=said):
        rank_files.Reader([path]).fill(wanted, wanted.tensors)
