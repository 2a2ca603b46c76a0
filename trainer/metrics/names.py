"""The names of all metrics. A source's metrics have a namespace of their own: a source may have any name."""

from __future__ import annotations

import re

LOSS = "loss/train"
"""Nats per target token, over all sources, since the last line of the log."""

LR = "lr"
GRAD_NORM = "grad_norm"
"""Before clipping; not finite when the step was skipped."""

SAMPLES_CRC32 = "data/samples_crc32"
"""CRC-32 of the step's samples, in order: equal checksums, equal data."""

SKIPPED_TOKENS = "tokens/skipped"
"""Tokens of all steps that were skipped for non-finite gradients."""

BUDGET_READING = "budget/forgetting"
"""Forgetting as the forgetting budget measures it: over fixed documents, on averaged weights if there are."""

BUDGET_LOW, BUDGET_HIGH = "budget/low", "budget/high"
"""The interval of filtered forgetting that holds with 95 %."""

REPLAY_RATIO = "budget/replay_ratio"
"""The replay ratio that was decided; it applies one decision later."""

BUDGET = "budget/budget"
"""Bits per byte that upstream may rise above the base."""

TOKENS_PER_S = "perf/tokens_per_s"
STEP_S = "perf/step_s"
DATA_WAIT_S = "perf/data_wait_s"
RANK_MEDIAN_S = "perf/rank_median_s"
"""Seconds a step of the median rank's own part: its forward passes, and its wait for data."""

RANK_MAX_S = "perf/rank_max_s"
"""The same of the slowest rank."""

PEAK_GIB = "mem/peak_gib"
RESERVED_GIB = "mem/reserved_gib"
"""What PyTorch holds of the GPU: what is above the peak is lost to fragments and caches."""

MFU = "perf/mfu"
"""Share of the devices' peak FLOP/s that the model's own arithmetic takes."""

SAVE_S = "perf/save_s"
"""From the snapshot to the commit of the last save."""

SAVE_BLOCKED_S = "perf/save_blocked_s"
"""How long the last save kept the training waiting."""

MEASURE_S = "perf/measure_s"
"""How long the training waited for the measurement of a decision."""

OF_SAVES = (SAVE_S, SAVE_BLOCKED_S)


def stream_bits_per_byte(stream: str) -> str:
    """Loss on a role or a set, as `upstream` or `upstream/en-wiki`; comparable across tokenizers."""
    return f"eval/{stream}/bits_per_byte"


def stream_nats_per_token(stream: str) -> str:
    """Loss on a validation set; comparable within one tokenizer."""
    return f"eval/{stream}/nats_per_token"


def stream_class_bits_per_byte(stream: str, byte_class: str) -> str:
    """Loss on the bytes of one class in a validation set: `cjk`, `latin`, `digits`, `other`."""
    return f"eval/{stream}/bits_per_byte_{byte_class}"


def stream_forgetting(stream: str) -> str:
    """Bits per byte above the base's, which was measured before the first step."""
    return f"eval/{stream}/forgetting"


_TASKS = "tasks/"
_STDERR = "_stderr"


def task_metric(task: str, key: str) -> str:
    """Return the name of a number of lm-eval's on a task: `acc,none` is `tasks/TASK/acc`.

    A filter other than `none` is named behind it: `exact_match,strict` is `tasks/TASK/exact_match/strict`.
    Signs that TensorBoard or MLflow refuse become `_`.
    """
    metric, _, chosen = key.partition(",")
    name = f"{task.replace('/', '_')}/{metric}" + (f"/{chosen}" if chosen not in ("", "none") else "")
    return _TASKS + re.sub(r"[^\w./ -]", "_", name)


def is_task_metric(metric: str) -> bool:
    """Whether a metric is a number on a task, or such a number's standard error, of either weights."""
    return of_weights(metric).startswith(_TASKS)


def task_stderr(metric: str) -> str | None:
    """Return the name of the standard error of a number on a task; None if `metric` is not such a number."""
    kind, _, rest = of_weights(metric).removeprefix(_TASKS).partition("/")
    head, slash, chosen = rest.partition("/")
    if not is_task_metric(metric) or head.endswith(_STDERR):
        return None
    error = f"{_TASKS}{kind}/{head}{_STDERR}{slash}{chosen}"
    return error if metric == of_weights(metric) else of_average(error)


_AVERAGE = "average/"


def of_average(name: str) -> str:
    """Return the name of a score of the averaged weights, by that of the weights."""
    return _AVERAGE + name


def of_weights(name: str) -> str:
    """Return the name of a score of the weights themselves, by that or by the one of `of_average`."""
    return name.removeprefix(_AVERAGE)


STREAMS = ("upstream", "downstream")
"""The roles of validation sets. A role's score is that of its only set, or the mean of its sets."""


def stream_of(metric: str) -> str | None:
    """The role or the set, as `upstream/en-wiki`, that a metric is a score on; None of another metric."""
    kind, _, rest = metric.partition("/")
    return rest.rpartition("/")[0] if kind == "eval" else None


UPSTREAM, DOWNSTREAM = stream_bits_per_byte("upstream"), stream_bits_per_byte("downstream")
FORGETTING = stream_forgetting("upstream")
AUDIT_FORGETTING = stream_forgetting("audit")
"""Of the audit set, which the forgetting budget never sees."""

SHOWN = (LOSS, LR, UPSTREAM, DOWNSTREAM, FORGETTING, TOKENS_PER_S, BUDGET_READING, REPLAY_RATIO)
"""What a person looks at while a run trains; the last values stand in `status.json`."""


def source_loss(name: str) -> str:
    """Nats per target token of one source, since the last line of the log."""
    return f"loss/source/{name}"


def source_tokens(name: str) -> str:
    """Tokens that the run has consumed from a source."""
    return f"tokens/source/{name}"


def source_epochs(name: str) -> str:
    """How often the run has consumed a source."""
    return f"epochs/source/{name}"


_OF_SOURCES = {"loss": source_loss, "tokens": source_tokens, "epochs": source_epochs}


def current_name(metric: str) -> str:
    """Translate a name of an older metrics file, where sources stood beside the totals: `loss/zh`."""
    kind, slash, name = metric.partition("/")
    if not slash or kind not in _OF_SOURCES or name.startswith("source/") or metric in (LOSS, SKIPPED_TOKENS):
        return metric
    return _OF_SOURCES[kind](name)
