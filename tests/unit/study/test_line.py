"""The averages of a base and of what it was continued to, scored and shown beside the arms."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.helpers.checkpoints import position, save_weights
from tests.helpers.model_tiny import ENGLISH, RECIPE, build, exported_tiny, from_base, tokenizer
from tokenization.errors import UserError
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.files import open_tokenizer
from trainer.checkpoint.merge import merge_models
from trainer.evaluation.offline import score_model
from trainer.recipe.load import dump_recipe, parse_recipe
from trainer.study.line import score_line
from trainer.study.observed import studied_arms
from trainer.study.page import conclude
from trainer.study.results import Planned, StudyRecord, read_record, read_results, write_record
from trainer.study.spec import AVERAGED

PIECES = 3 + 256 + len(ENGLISH)


@pytest.fixture
def study(tmp_path):
    """A base and other weights that stand for its continuation; downstream is a mean of two sets."""
    base = exported_tiny(tmp_path)
    tok = open_tokenizer(tokenizer(tmp_path / "tok", *ENGLISH))
    options = {"vocab_size": tok.size, "tokenizer": tok.fingerprint, "eos_id": 2}
    for seed, name in enumerate(("up", "zh", "law")):
        with ShardWriter(tmp_path / name, **options) as shard:
            shard.add_document([*np.random.default_rng(seed).integers(3, tok.size, 99), 2], 300)
    sets = {"zh": {"path": f"{tmp_path / 'zh'}", "role": "downstream", "weight": 3},
            "law": {"path": f"{tmp_path / 'law'}", "role": "downstream"}}  # fmt: skip
    paths = (f"validation.upstream={tmp_path / 'up'}", f"validation.sets={json.dumps(sets)}")
    own = (
        f"model.base={base}",
        "model.init=null",
        f"model.tokenizer={tok.path.parent}",
        "phases.0.tokens=640",
    )
    asked = parse_recipe(RECIPE, [*own, *paths])
    run = tmp_path / "study" / "replay-0"
    causal = build(from_base(base), PIECES)
    weights = {name: value + 0.05 * value.std() for name, value in causal.named_parameters()}
    state = {"phases": [], "settings": {"seq_len": 16, "document_mask": "none"}, "trained_tokens": 640}
    where = position(10, 2, tokens=640, recipe=dump_recipe(asked), state=state)
    save_weights(run / "checkpoints", weights, where, causal.hf.config.to_dict())
    (run / "recipe.resolved.yaml").write_text(dump_recipe(asked))
    lines = [{"number": 1, "restored_step": None, "time": 1.0, "run_id": ""}]
    for step in (0, 10):
        scores = {f"eval/{one}/{unit}": 1.0 for one in SCORED for unit in UNITS}
        lines.append({"attempt": 1, "time": 1.0, "step": step, "tokens": 64 * step, **scores})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = (Planned("replay-0", "replay-0", 0), Planned("replay-5", "replay-5", 0))
    write_record(tmp_path / "study", StudyRecord("merge", "recipe.yaml", arms))
    return tmp_path


UNITS = ("bits_per_byte", "nats_per_token")
SCORED = ("upstream", "downstream", "downstream/zh", "downstream/law")


def test_the_ends_of_the_line_are_the_two_models_and_its_middle_is_their_average(study):
    score_line(study / "study")
    found = {arm.name: arm for arm in read_results(study / "study")}
    assert list(found) == ["replay-0", *(f"average-{percent}" for percent in range(0, 101, 10))]
    run, base = study / "study" / "replay-0", study / "model"
    merge_models([str(base), str(run)], [0.7, 0.3], study / "merged", "fp32")
    for name, path in (("average-0", base), ("average-100", run), ("average-30", study / "merged")):
        scores = score_model(str(path), [str(study / one) for one in ("up", "zh", "law")], seq_len=16)
        up, zh, law = (score.bits_per_byte for score in scores.values())
        assert found[name].upstream.end == pytest.approx(up, rel=1e-6), name
        assert found[name].downstream.end == pytest.approx(0.75 * zh + 0.25 * law, rel=1e-6), name
        assert found[name].upstream.base == found[name].downstream.base == 1.0, "the arm's own first score"
        assert found[name].finished
        assert found[name].tokens == 640
    assert found["average-0"].upstream.end != found["average-100"].upstream.end


def test_what_is_scored_is_scored_once_and_is_on_the_page_and_in_no_law(study):
    out = study / "study"
    score_line(out)
    before = {path: path.read_bytes() for path in out.glob("average-*/metrics.jsonl")}
    write_record(out, StudyRecord("merge", "recipe.yaml", (Planned("replay-0", "replay-0", 0),)))  # again
    score_line(out)
    assert {path: path.read_bytes() for path in out.glob("average-*/metrics.jsonl")} == before
    assert sum(AVERAGED in arm.fields for arm in read_record(out).arms) == 11
    told = conclude(out)
    assert "average-50" in told
    page = (out / "report.html").read_text()
    assert "average-50" in page
    assert "grey line: averages, from the base to the continued model" in page
    plane = (out / "figures" / "trade-off.svg").read_text()
    assert plane.count('class="dot"') == 1 + 11
    joined = re.findall(r'class="line"[^>]* d="M([^"]*)"', plane)
    assert [points.count("L") for points in joined] == [10], "the line from the base to the continued model"
    assert [name in plane for name in ("average-0<", "average-50<", "average-30<")] == [True, True, False]
    assert "average" not in (out / "figures" / "upstream.svg").read_text()
    assert "no arm has ended" in page or "differ neither in their replay" in page
    assert [one.arm.name for one in studied_arms([out])] == ["replay-0"]


def test_an_arm_that_has_not_ended_has_no_line_yet(study):
    metrics = study / "study" / "replay-0" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(True)[:2]))
    score_line(study / "study")
    assert [arm.name for arm in read_record(study / "study").arms] == ["replay-0", "replay-5"]


def test_there_is_no_line_from_random_weights(study):
    recipe = study / "study" / "replay-0" / "recipe.resolved.yaml"
    text = parse_recipe(recipe.read_text(), ["model.base=null", "model.init={hidden_size: 32}"])
    recipe.write_text(dump_recipe(text))
    with pytest.raises(UserError, match=r"model\.base: is missing, and a line cannot begin"):
        score_line(study / "study")
