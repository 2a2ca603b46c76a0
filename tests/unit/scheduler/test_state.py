"""What a checkpoint says of its run, as older releases wrote it: read, and written as it was."""

import json

from trainer.mixer.description import PassedOver, PastPhase
from trainer.scheduler.state import RunState

OLD = {
    "phases": [
        {
            "name": "one",
            "tokens": 10000,
            "samples": 1004,
            "train": "all",
            "keep_optimizer": False,
            "schedule": {
                "kind": "cosine",
                "max_lr": 0.0003,
                "min_lr": 3e-05,
                "start_lr": 0.0,
                "warmup": "1%",
                "cooldown": None,
                "cooldown_shape": None,
                "constant": None,
                "constant_lr": None,
                "decay": None,
                "decay_shape": None,
                "stages": None,
                "cycles": 1,
                "anneal": None,
                "lr_scale": {},
            },
            "data": {
                "mixer": 1,
                "seed": 0,
                "seq_len": 10,
                "mixture.0.from_sample": 0,
                "mixture.0.zh": "10031/16384",
                "mixture.0.en": "1/4",
                "mixture.0.a.b": "2257/16384",
                "mixture.1.from_sample": 501,
                "mixture.1.en": "2/3",
                "mixture.1.a.b": "1/3",
                "sources.zh.fingerprint": "hzh",
                "sources.zh.samples": 400,
                "sources.zh.place": 0,
                "sources.zh.order": "blocks",
                "sources.zh.block": 7,
                "sources.en.fingerprint": "hen",
                "sources.en.samples": 300,
                "sources.en.place": 1,
                "sources.en.order": "shuffled",
                "sources.a.b.fingerprint": "ha.b",
                "sources.a.b.samples": 90,
                "sources.a.b.place": 2,
                "sources.a.b.order": "sequential",
                "sources.a.b.offset": 3,
            },
            "horizon": 10000,
            "reached": 0.0,
        }
    ],
    "settings": {
        "seq_len": 10,
        "global_batch_size": 7,
        "seed": 0,
        "document_mask": "none",
        "model.base": "base",
        "model.init": None,
        "model.dtype": "bf16",
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.95,
        "optimizer.eps": 1e-08,
        "optimizer.weight_decay": 0.1,
        "optimizer.grad_clip": 1.0,
    },
    "samples": 248,
    "phase_trained_tokens": 2170,
    "tokens": 2480,
    "trained_tokens": 2170,
    "step": 35,
    "lr": 0.0002737114847666929,
    "seen_before": {},
    "peak_before": None,
    "version": 1,
}
"""35 steps, of which the first 24 were of ten samples, and three were skipped."""


def test_an_old_state_is_read_and_written_as_it_was():
    state = RunState.from_json(json.loads(json.dumps(OLD)))
    assert json.dumps(state.to_json()) == json.dumps(OLD)
    assert state.next_lr == 0.0002719068031995071
    assert state.running.data.sources["a.b"].offset == 3
    assert state.fingerprints() == {"zh": "hzh", "en": "hen", "a.b": "ha.b"}
    assert state.past() == (PastPhase(248, state.running.data),)


def test_the_tokens_of_a_phase_are_counted_by_what_its_sources_hold():
    state = RunState.from_json(OLD)
    assert state.tokens_seen() == {"hzh": 1518, "hen": 620, "ha.b": 342}


def test_what_is_left_out_is_part_of_the_past_and_of_what_is_to_come():
    """Of the record in the run directory only what is still to come is taken over."""
    state = RunState.from_json(OLD)
    assert state.samples == 248
    ahead, behind, next_phase = PassedOver(0, 300, 320), PassedOver(0, 240, 260), PassedOver(1, 0, 8)
    known = state.with_left_out([ahead, behind, next_phase])
    assert known.left_out == (ahead, next_phase)
    again = RunState.from_json(json.loads(json.dumps(known.to_json())))
    assert again == known
    assert again.with_left_out([ahead]) == known
    assert not known.leaves_out(52)
    assert known.leaves_out(53)
    assert not known.after_step(72, lr=0.1).leaves_out(100)


def test_a_step_that_turns_out_skipped_is_as_one_that_was_known_to_be():
    state = RunState.from_json(OLD)
    assert state.after_step(31, lr=0.1).last_step_skipped(31) == state.after_step(31, lr=0.1, trained=False)
