"""What a plan says of a run that has begun, and what it refuses before ranks are joined."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import runs
from tests.helpers.byte_level import save, tokenizer_json
from tests.helpers.checkpoints import manifest
from tests.helpers.task_files import write_tasks
from tokenization.errors import UserError, UserErrors
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer import files
from tokenization.vocabulary.train import train_vocabulary
from trainer.checkpoint import history
from trainer.checkpoint.manifest import commit_checkpoint
from trainer.evaluation.tasks import OFFLINE, task_manager
from trainer.model import architecture
from trainer.model.architecture import read_config
from trainer.plan.make import make_plan
from trainer.plan.render import plan_to_json, render_plan
from trainer.plan.tokenizer import with_tokenizer
from trainer.recipe import load
from trainer.storage.hub import read_generation, write_model_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def file(data, tmp_path):
    return runs.write(runs.recipe(data, tmp_path / "run", phases=2), tmp_path / "recipe.yaml")


def plan(file, *overrides):
    return make_plan(load.load_recipe(file, overrides), 1)


def saved(file, *overrides, steps=4, baseline=None):
    """Commits what the run says of itself after so many steps, without its weights; the state."""
    begun = plan(file, *overrides)
    state = begun.decision.state
    for _ in range(steps):
        state = state.after_step(begun.recipe.global_batch_size, lr=state.next_lr)
    path = begun.recipe.directory / "checkpoints" / history.name_of(state.step)
    path.mkdir(parents=True)
    (begun.recipe.directory / "recipe.resolved.yaml").write_text(load.dump_recipe(begun.recipe))
    commit_checkpoint(path, replace(manifest(state.step), state=state.to_json(), baseline=baseline or {}))
    return state


def based(file, base, **config):
    """A recipe over this base, whose run has a checkpoint with the config that it began with."""
    asked = ("model.init=null", f"model.base={base}", "validation.upstream=null")
    began = plan(file, *asked).model_config
    state = saved(file, *asked)
    path = load.load_recipe(file, asked).directory / "checkpoints" / history.name_of(state.step)
    write_model_config({**began, **config}, path)
    return asked


def scored(file, *overrides):
    """The base's score as a checkpoint holds it."""
    upstream = plan(file, *overrides).validation["upstream"]
    on = {"fingerprint": upstream.fingerprint, "tokens": upstream.tokens, "seq_len": 32}
    return {"upstream": {"bits_per_byte": 2.0, "measured_on": on}}


def test_what_is_not_there_is_told_at_once_whatever_needs_it(file, tmp_path):
    gone = str(tmp_path / "gone")
    named = ("model.tokenizer", "model.base", "sources.zh.path", "validation.upstream")
    with pytest.raises(UserErrors) as raised:
        plan(file, "model.init=null", *(f"{field}={gone}-{number}" for number, field in enumerate(named)))
    lines = str(raised.value).splitlines()
    assert len(lines) == len(named)
    for number in range(len(named)):
        assert sum(f"{gone}-{number}" in line for line in lines) == 1, lines


def test_the_same_validation_set_needs_no_note(file):
    saved(file, baseline=scored(file))
    assert plan(file).notes == ()


def test_another_validation_set_is_told_with_what_changed_and_the_way_on(file, data):
    baseline = scored(file)
    saved(file, baseline=baseline)
    fingerprint = baseline["upstream"]["measured_on"]["fingerprint"]
    (note,) = plan(file, f"validation.upstream={data}/zh-val").notes
    assert f"validation.upstream: '{data}/zh-val': forgetting is not measured" in note
    assert f"(fingerprint {fingerprint} → " in note
    assert note.endswith("restore that set and validation.max_tokens, or start in a new run_dir")
    shorter = plan(file, "validation.max_tokens=50")
    assert "→ 51)" in shorter.notes[0]
    assert shorter.notes[0] in render_plan(shorter)
    assert plan_to_json(shorter)["notes"] == list(shorter.notes)


def test_a_validation_set_that_is_added_to_a_run_is_told(file):
    saved(file, "validation.upstream=null")
    (note,) = plan(file).notes
    assert "the base was not scored on it before the first step" in note


def test_sets_by_name_are_opened_and_one_that_the_base_was_not_scored_on_is_told(file, data):
    sets = f"validation.sets={{wiki: {{path: {data}/zh-val, role: upstream}}}}"
    saved(file, sets, baseline=scored(file))
    found = plan(file, sets)
    assert list(found.validation) == ["upstream", "downstream", "upstream/wiki"]
    (note,) = found.notes
    assert note.startswith(f"validation.sets.wiki: '{data}/zh-val': forgetting is not measured")
    with pytest.raises(UserErrors, match=r"validation\.sets\.wiki: .*nowhere"):
        plan(file, sets.replace(f"{data}/zh-val", "nowhere"))


def test_a_run_that_watches_nothing_is_told(file):
    (note,) = plan(file, "validation={}").notes
    assert note.startswith("validation: no held-out text is named: what the run learns and forgets is not")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a task; lm-eval or what stands in for it."""
    for name in OFFLINE:
        monkeypatch.setenv(name, "")
    if importlib.util.find_spec("lm_eval") is None:
        monkeypatch.syspath_prepend(str(runs.ROOT / "tests" / "helpers" / "stand_in_harness"))
    task_manager.cache_clear()
    yield write_tasks(tmp_path / "tasks", "next_word")
    task_manager.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_plan_says_how_often_tasks_are_answered(file, tasks):
    """Two phases of 12 steps: before the first one, after steps 5, 10, 15 and 20, and at both ends."""
    asked = f"validation.tasks={{names: [next_word], path: {tasks}, every_tokens: {5 * 256}, limit: 3}}"
    found = plan(file, asked)
    assert "tasks    next_word by lm-eval before the first step" in render_plan(found)
    assert "1,280 tokens and at the end of each phase: 7 times; the first 3 examples" in render_plan(found)
    assert plan_to_json(found)["task_evaluations"] == 7
    assert plan_to_json(plan(file, asked.replace("1280", "1")))["task_evaluations"] == 1 + 24
    assert plan_to_json(plan(file, asked.replace("1280", str(6 * 256))))["task_evaluations"] == 5
    assert plan_to_json(plan(file))["task_evaluations"] == 0


def test_tasks_that_cannot_be_answered_are_told_before_training(file, tasks, monkeypatch):
    def refused(name, path):
        with pytest.raises(UserErrors) as found:
            plan(file, f"validation.tasks={{names: [{name}], path: {path}}}")
        return str(found.value)

    assert "validation.tasks.names: 'other' is not a known task; known are" in refused("other", tasks)
    assert "validation.tasks.path: 'nowhere' is not a folder" in refused("next_word", "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = "validation.tasks.names: 'next_word' needs the package lm-eval; pip install"
    assert line in refused("next_word", tasks)


def test_a_bare_score_of_an_older_checkpoint_needs_no_note(file):
    saved(file, baseline={"upstream": 2.0})
    assert plan(file).notes == ()


LAW = "sources.law={{path: {}/zh-val, role: new}}"
NEW_PHASE = "{name: law, tokens: 256, mixture: {law: 1/2, en: 1/2}, schedule: {kind: constant, max_lr: 1e-4}}"


@pytest.mark.parametrize("steps", [4, 12])
def test_a_source_that_is_declared_for_a_later_phase_leaves_the_shares_of_one_that_has_begun(
    file, data, steps
):
    ratio = "phases.0.mixture={replay_ratio: 25%}"
    state = saved(file, ratio, steps=steps)
    later = plan(file, ratio, LAW.format(data), f"phases.1={NEW_PHASE}")
    assert later.decision.kind == ("restore" if steps < 12 else "new_phase")
    assert later.decision.diff == ()
    assert later.data[0] == state.phases[0].data
    assert later.mixture.consumed(1, 0)["law"] == 0


def test_a_source_that_is_put_into_a_phase_that_has_begun_is_refused(file, data):
    saved(file, "phases.0.mixture={replay_ratio: 25%, zh: 1, en: 1}")
    mixture = "phases.0.mixture={replay_ratio: 25%, zh: 9, law: 1, en: 1}"
    assert plan(file, mixture, LAW.format(data)).decision.kind == "refuse"


@pytest.mark.parametrize("dropped", [False, True], ids=["kept", "dropped"])
def test_a_phase_with_segments_is_cut_short_by_an_anneal(file, data, dropped):
    first = "phases.0.mixture=[{{from: 0, zh: 1/4, en: 3/4}}{}]"
    whole = first.format(", {from: 2304, law: 1}")
    saved(file, whole, LAW.format(data))
    anneal = "phases.0.schedule.anneal={from_tokens: 1536, tokens: 512, end_lr: 0}"
    found = plan(file, first.format("") if dropped else whole, LAW.format(data), anneal)
    assert found.decision.kind == "restore", found.decision.render()
    assert found.mixture.phase_samples[0] == 2048 // 32


NOTHING = r"phases\.phase-1\.train: 'layer_1' matches no parameter; names are like hf\.model\.embed_tokens"
IN_VAIN = r"phases\.phase-1\.schedule\.lr_scale: scales the LR of embeddings that the phase does not train"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["phases.1.train=[mlp, layer_1]"], NOTHING),
        (["phases.1.train=[mlp]", "phases.1.schedule.lr_scale={embeddings: 2}"], IN_VAIN),
    ],
)
def test_what_a_later_phase_would_train_in_vain_is_refused_by_the_plan(file, overrides, told):
    with pytest.raises(UserErrors, match=told):
        plan(file, *overrides)


def test_patterns_that_match_are_planned(file):
    assert plan(file, "phases.1.train=[mlp, lm_head]").decision.kind == "start"


def test_another_seq_len_is_told_before_what_follows_from_it(file):
    # 39 of zh's 1,596 samples of 32 tokens may be used, and 24 are: of samples of 64 tokens only 19 might be
    cap = ["sources.zh.max_epochs=1/40", "phases.1.tokens=512"]
    saved(file, *cap, steps=12)
    doubled = plan(file, *cap, "seq_len=64")
    assert doubled.decision.kind == "refuse"
    assert "seq_len was changed" in doubled.decision.reason
    with pytest.raises(UserErrors, match="max_epochs: '1/40' is not enough"):
        plan(file, *cap, "phases.1.tokens=4000")


def test_a_batch_size_that_changes_in_mid_run_counts_in_all_that_is_told_of_the_run(file):
    before = plan(file)
    saved(
        file, steps=5
    )  # 40 of 96 samples; 56 are left, which are two batches of 32, and the next phase has three
    after = plan(file, "global_batch_size=32", "micro_batch_size=8")
    assert before.mixture.phase_samples == (96, 96)
    assert after.mixture.phase_samples == (104, 96)
    assert after.decision.spans[-1].stop == 200 * 32
    assert plan_to_json(after)["flops"] * 192 == plan_to_json(before)["flops"] * 200


@pytest.mark.parametrize("name", ["from_sample", "train", "skipped"])
def test_a_source_of_any_name_is_planned_saved_and_restored(data, tmp_path, name):
    tree = runs.recipe(data, tmp_path / "run", phases=2)
    tree["sources"][name] = tree["sources"].pop("zh")
    for phase in tree["phases"]:
        phase["mixture"][name] = phase["mixture"].pop("zh")
    file = runs.write(tree, tmp_path / "recipe.yaml")
    state = saved(file)
    again = plan(file)
    assert again.decision.kind == "restore", again.decision.render()
    assert again.decision.diff == ()
    assert again.data[0] == state.phases[0].data
    other = plan(file, f"phases.0.mixture={{{name}: 1/2, en: 1/2}}").decision
    assert [difference.part for difference in other.diff] == ["data", "data"]


# ---- the base, the tokenizer and the shards are of one tokenizer


def grown(folder, tokenizer, **config):
    """A model directory without weights, which is all that a plan reads of a base."""
    folder.mkdir()
    for path in Path(tokenizer).iterdir():
        shutil.copyfile(path, folder / path.name)
    fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    told = {"model_type": "llama", "vocab_size": 420, "max_position_embeddings": 64, **fields, **config}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def other_tokenizer(folder):
    """As many pieces as the data's tokenizer, and not the same ones."""
    corpus = folder / "other.txt"
    corpus.write_text("\n".join(runs.text("en", 300, 8) + runs.text("zh", 300, 9)).upper(), encoding="utf-8")
    train_vocabulary([corpus], 420, folder / "other")
    return folder / "other"


def test_a_base_of_another_vocabulary_of_the_same_size_is_refused(file, data, tmp_path):
    same = grown(tmp_path / "same", data / "tokenizer")
    assert plan(file, "model.init=null", f"model.base={same}").notes == ()
    other = grown(tmp_path / "base", other_tokenizer(tmp_path))
    with pytest.raises(
        UserErrors, match=r"^model.base: '.*base' has a row of .* for the id \d+, which is .*"
    ):
        plan(file, "model.init=null", f"model.base={other}")


def test_a_base_that_tells_its_tokenizer_is_held_to_it(file, data, tmp_path):
    other = files.open_tokenizer(other_tokenizer(tmp_path)).fingerprint
    base = grown(tmp_path / "base", data / "tokenizer", tokenizer_fingerprint=other)
    for name in ("tokenizer.model", "tokenizer.json"):
        (base / name).unlink()
    with pytest.raises(UserErrors, match=f"has rows of the tokenizer {other}, and model.tokenizer"):
        plan(file, "model.init=null", f"model.base={base}")


def test_a_pad_id_that_is_a_piece_of_text_is_refused_and_one_that_is_eos_is_told(file, data, tmp_path):
    base = grown(tmp_path / "base", data / "tokenizer", pad_token_id=400)
    with pytest.raises(
        UserErrors, match=r"has pad_token_id 400 in config.json, which is '.*', a piece of text"
    ):
        plan(file, "model.init=null", f"model.base={base}")
    told = grown(tmp_path / "told", data / "tokenizer", pad_token_id=2)
    (note,) = plan(file, "model.init=null", f"model.base={told}").notes
    assert "pad_token_id 2 is EOS as well" in note


def test_what_the_base_says_of_generating_goes_into_every_checkpoint(file, data, tmp_path):
    base = grown(tmp_path / "base", data / "tokenizer")
    assert plan(file, "model.init=null", f"model.base={base}").generation is None
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    found = plan(file, "model.init=null", f"model.base={base}")
    assert found.generation == {"temperature": 0.5}
    (tmp_path / "checkpoint").mkdir()
    write_model_config(found.model_config, tmp_path / "checkpoint", found.generation)
    assert read_generation(tmp_path / "checkpoint") == found.generation
    assert (
        read_config(tmp_path / "checkpoint")["tokenizer_fingerprint"]
        == files.open_tokenizer(base).fingerprint
    )


def test_random_weights_have_the_special_ids_of_the_tokenizer(file, tmp_path):
    recipe = load.load_recipe(file)
    tokenizer = files.open_tokenizer(save(tmp_path / "bytes", tokenizer_json(special=("<|end|>",))))
    told = with_tokenizer(recipe, architecture.resolve_config(recipe, tokenizer.size), tokenizer)
    assert told["tokenizer_fingerprint"] == tokenizer.fingerprint
    ids = (told["eos_token_id"], told["bos_token_id"], told["pad_token_id"])
    assert ids == (tokenizer.size - 1, None, None), "not LLaMA's 2 and 1, which are bytes here"
    chosen = load.load_recipe(file, ["model.init.eos_token_id=5"])
    assert with_tokenizer(chosen, architecture.resolve_config(chosen, 420), tokenizer)["eos_token_id"] == 5


def test_a_run_goes_on_with_the_tokenizer_that_it_began_with(file):
    state = saved(file)
    path = plan(file).recipe.directory / "checkpoints" / history.name_of(state.step) / "config.json"
    path.write_text(json.dumps({"tokenizer_fingerprint": plan(file).model_config["tokenizer_fingerprint"]}))
    assert plan(file).decision.kind == "restore"
    path.write_text(json.dumps({"tokenizer_fingerprint": "another.one"}))
    with pytest.raises(UserErrors, match=r"model.tokenizer: .* now, but .* was trained with another.one"):
        plan(file)


def test_shards_of_an_earlier_rewarm_are_known_and_their_eos_is_held(file, data, tmp_path):
    tokenizer = files.open_tokenizer(data / "tokenizer")
    for eos, good in ((2, True), (1, False)):
        options = {"vocab_size": 420, "tokenizer": tokenizer.fingerprint[:32], "eos_id": eos}
        with ShardWriter(tmp_path / f"upstream-{eos}", **options) as shard:
            shard.add_document([5, 6, eos])
        override = f"validation.upstream={tmp_path}/upstream-{eos}"
        if good:
            assert plan(file, override).notes == ()
        else:
            with pytest.raises(
                UserErrors, match=r"validation.upstream: .* ends documents with 1, but EOS of .* 2"
            ):
                plan(file, override)


def test_a_validation_set_that_is_trained_on_is_told(file, data):
    (note,) = plan(file, f"validation.downstream={data}/zh").notes
    assert note.startswith(f"validation.downstream: '{data}/zh' holds tokens that sources.zh trains on")
    assert note in render_plan(plan(file, f"validation.downstream={data}/zh"))
    assert plan(file).notes == ()


# ---- a run goes on with the model that it began with

EDITS = [
    {"num_hidden_layers": 1},
    {"tie_word_embeddings": True},
    {"rms_norm_eps": 0.1},
    {"rope_theta": 1e6},
    {"hidden_act": "gelu"},
    {"vocab_size": 5},
    {"model_type": "mamba"},
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: next(iter(edit)))
def test_a_base_that_has_changed_since_is_told_and_changes_nothing(file, data, tmp_path, edit):
    base = grown(tmp_path / "base", data / "tokenizer")
    asked = based(file, base)
    before = plan(file, *asked)
    assert before.notes == ()
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**told, **edit}))
    after = plan(file, *asked)
    assert after.model_config == before.model_config
    assert after.decision.kind == "restore"
    (note,) = after.notes
    assert "config.json has changed since the run began" in note
    assert f"{next(iter(edit))} " in note


@pytest.mark.parametrize("gone", ["away", "emptied", "damaged"])
def test_a_run_goes_on_without_its_base(file, data, tmp_path, gone):
    base = grown(tmp_path / "base", data / "tokenizer")
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    asked = based(file, base)
    before = plan(file, *asked)
    if gone == "damaged":
        (base / "config.json").write_text("{")
    else:
        shutil.rmtree(base)
        if gone == "emptied":
            base.mkdir()
    after = plan(file, *asked)
    assert (after.model_config, after.decision.kind) == (before.model_config, "restore")
    assert after.notes == ()


def test_a_first_start_needs_its_base(file, tmp_path):
    for base in (tmp_path / "nowhere", "models/nowhere"):
        with pytest.raises(UserErrors, match=r"^model.base: '.*nowhere' does not exist"):
            plan(file, "model.init=null", f"model.base={base}")


def test_padding_rows_of_a_base_whose_tokenizer_is_known_may_be_any_number(file, data, tmp_path):
    base = grown(tmp_path / "base", data / "tokenizer", vocab_size=2048)
    asked = ("model.init=null", f"model.base={base}")
    assert plan(file, *asked).decision.kind == "start"
    for name in ("tokenizer.model", "tokenizer.json"):
        (base / name).unlink()
    with pytest.raises(UserErrors, match=r"put the base's own tokenizer files beside its config\.json"):
        plan(file, *asked)


UNTRAINABLE = [
    ({"quantization_config": {"quant_method": "gptq"}}, r"model.base: .* is quantized \(gptq"),
    ({"pad_token_id": 420}, r"model.base.pad_token_id: 420 is not a row of the 420"),
    ({"pad_token_id": -1}, r"model.base.pad_token_id: -1 is not a row of the 420"),
]


@pytest.mark.parametrize(("fields", "told"), UNTRAINABLE)
def test_a_config_whose_weights_cannot_be_trained_is_refused(file, data, tmp_path, fields, told):
    base = grown(tmp_path / "base", data / "tokenizer", **fields)
    with pytest.raises(UserErrors, match=told):
        plan(file, "model.init=null", f"model.base={base}")


# ---- what a run needs of its past


def only(*names):
    """The mixture of each phase is one of these sources."""
    return [f"phases.{number}.mixture={{{name}: 1}}" for number, name in enumerate(names)]


@pytest.mark.parametrize(("steps", "kind"), [(12, "new_phase"), (14, "restore")])
def test_the_shards_of_a_finished_phase_may_be_gone(file, tmp_path, steps, kind):
    asked = only("en", "zh")
    state = saved(file, *asked, steps=12)
    if steps > 12:
        entered = plan(file, *asked).decision.state
        for _ in range(steps - 12):
            entered = entered.after_step(8, lr=entered.next_lr)
        path = tmp_path / "run" / "checkpoints" / history.name_of(entered.step)
        path.mkdir()
        commit_checkpoint(path, replace(manifest(entered.step), state=entered.to_json()))
    before = plan(file, *asked)
    after = plan(file, *asked, f"sources.en.path={tmp_path}/gone")
    assert after.decision.kind == before.decision.kind == kind
    assert (after.data, after.mixture.consumed(1, 40)) == (before.data, before.mixture.consumed(1, 40))
    assert list(after.stores) == ["zh"]
    assert state.fingerprints().keys() == {"en"}
    with pytest.raises(UserErrors, match=r"^sources.zh.path: .* has no token shards"):
        plan(file, *asked, f"sources.zh.path={tmp_path}/gone")


@pytest.mark.parametrize("steps", [4, 11])
def test_the_shards_of_a_phase_that_runs_must_be_there(file, tmp_path, steps):
    asked = only("en", "zh")
    saved(file, *asked, steps=steps)
    with pytest.raises(UserErrors, match=r"^sources.en.path: .* has no token shards"):
        plan(file, *asked, f"sources.en.path={tmp_path}/gone")


def test_a_source_that_a_later_phase_takes_from_again_must_be_there(file, tmp_path):
    asked = only("en", "en")
    saved(file, *asked, steps=12)
    with pytest.raises(UserErrors, match=r"^sources.en.path: .* has no token shards"):
        plan(file, *asked, f"sources.en.path={tmp_path}/gone")


@pytest.mark.parametrize("log", ["slurm-17.out", "train.log", None])
def test_checkpoints_that_were_copied_by_themselves_are_the_run(file, tmp_path, log):
    saved(file)
    run = tmp_path / "run"
    manifest_file = next((run / "checkpoints").rglob("manifest.json"))
    tree = json.loads(manifest_file.read_text())
    (run / "recipe.resolved.yaml").rename(tmp_path / "elsewhere.yaml")
    tree["recipe"] = (tmp_path / "elsewhere.yaml").read_text()
    read = history.scan_checkpoints(run / "checkpoints")[0][0].manifest
    commit_checkpoint(manifest_file.parent, replace(read, recipe=tree["recipe"]))
    (run / "last_committed.json").unlink()
    if log:
        (run / log).write_text("")
    assert plan(file).decision.kind == "restore"
    with pytest.raises(UserError, match="holds another run, 'run'"):
        plan(file, "name=another")
    assert history.find_checkpoint(run / "checkpoints").manifest.step == 4


def test_the_log_of_a_batch_job_is_not_another_run(file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-17.out").write_text("")
    assert plan(file).decision.kind == "start"
    (tmp_path / "run" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=r"does not hold a run \(it holds 'thesis.txt'\)"):
        plan(file)
