"""benchmarks/step.py: which cases are measured, what a table says of them, and what a cut-off run leaves."""

import json
from itertools import product

import pytest

from benchmarks import step
from benchmarks.step import Case, Measured


def options(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["step", *words])
    return step.options()


def test_all_are_two_bodies_with_two_vocabularies_two_lengths_and_two_world_sizes(monkeypatch):
    made = step.cases(options(monkeypatch, "--all"))
    assert {(case.body, case.vocab, case.seq_len, case.ranks) for case in made} == set(
        product(("small", "large"), (32_000, 55_296), (512, 2_048), (1, 2))
    )
    assert {case.micro_batch_size * case.seq_len * case.ranks for case in made} == {4_096}  # tokens of a step


def test_cases_are_named_as_the_table_names_them(monkeypatch):
    names = ["large, 55,296 pieces, seq 2,048, 2 ranks", "small, 32,000 pieces, seq 512, 1 rank"]
    assert [case.name for case in step.cases(options(monkeypatch, "--only", *names))] == names
    with pytest.raises(SystemExit, match="'tiny' is not one of the cases: small, 32,000"):
        step.cases(options(monkeypatch, "--only", names[0], "tiny"))


def measured(rate, peak):
    return Measured(
        tokens_per_s=rate, cpu_s=4096 / rate, peak_bytes=peak * 2**30, matmul_flops=1e11, loss=1.0
    )


def test_a_row_has_ratios_of_pairs_and_both_counts_of_mfu():
    case = Case("small", 32_000, 512, 1, 8, 1)
    turns = {
        "rewarm": [measured(1500, 1), measured(750, 1), measured(1300, 1)],
        "Trainer": [measured(1000, 2), measured(500, 2), measured(1000, 2)],
    }
    rows = [line.split(" | ") for line in step.table([(case, turns)]).splitlines()[2:]]
    # 4 layers of 256 x (4 x 256 + 3 x 688), and 256 x 32,000: 11.35M of 6 FLOPs; 12 x 4 x 256 x 512 more.
    assert rows[0][1:] == ["rewarm", "1,300", "1.50x", "1.50x", "1.00", "0.50x", "89 %", "97 % |"]
    assert rows[1][3] == "1.00x"


def test_what_was_measured_is_on_the_disk_before_the_next_begins(monkeypatch, tmp_path):
    out, case = tmp_path / "step.json", "small, 32,000 pieces, seq 512, 1 rank"

    def fails_at_the_second(case, kind, steps):
        if out.exists():
            raise KeyboardInterrupt
        return measured(1000, 1)

    monkeypatch.setattr(step, "measured", fails_at_the_second)
    monkeypatch.setattr("sys.argv", ["step", "--only", case, "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        step.main()
    tree = json.loads(out.read_text())
    assert tree.keys() >= {"commit", "machine", "versions"}
    assert list(tree["results"][0]["turns"]) == ["rewarm"]
