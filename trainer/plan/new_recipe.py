"""Write a recipe from a few answers: commented, with sizes that fit the machine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from glob import escape
from itertools import chain, count
from pathlib import Path, PurePath

from tokenization.errors import UserError
from tokenization.prepare.clean import CLEAN
from tokenization.shards.store import open_tokens
from trainer.engine.ds_config import read_preset
from trainer.plan.ahead import Ahead, has_shards
from trainer.plan.make import make_plan
from trainer.plan.presets import SHIPPED, fits
from trainer.plan.shapes import known_shape, shape_named_in
from trainer.recipe.load import parse_recipe
from trainer.recipe.reference import SCHEMA_FILE
from trainer.storage.shipped import shipped, train_words

BATCH_TOKENS = 4_194_304
"""Tokens of LLaMA-2's batches."""

LEAST_STEPS = 1000
"""A short run has smaller batches, so that its schedule has as many steps."""

CONTEXT = 4096
"""The longest samples, unless `--seq-len` asks for longer ones."""

MODES = ("none", "full")
ORDER = ("zero1", "zero2", "zero3", "zero2-offload", "zero3-offload")
"""From the fastest to the one that needs the least memory."""


@dataclass(frozen=True)
class Answers:
    """What only the user knows."""

    base: str
    tokenizer: str | None
    new: Sequence[str]
    """Shard prefixes of the data to learn."""
    replay: Sequence[str]
    """Shard prefixes of the data not to forget."""
    tokens: int
    """The budget."""
    gpus: int
    name: str
    replay_ratio: Fraction = Fraction(1, 4)
    max_lr: str = "1e-4"
    seq_len: int | None = None
    file: str = "FILE"
    """Where the recipe will be, for the commands in its first lines."""


@dataclass(frozen=True)
class _Sizes:
    """What follows from the answers and the machine."""

    seq_len: int
    batch: int
    preset: str
    recompute: str
    known: bool
    """Whether the base's sizes are known, so that the preset is more than a guess."""


def new_recipe(answers: Answers, available: int, shape: str | None = None) -> str:
    """Return the text of a recipe that plans clean for ranks that have so many bytes each.

    `shape` names the well-known model that the base is, while it is not there.

    Raises:
        UserErrors: a plan of it shows errors, which name the field.
    """
    _refuse_too_many_tokens(answers)
    seq_len = answers.seq_len or min(CONTEXT, _context(answers.base, shape))
    target = min(BATCH_TOKENS, max(1, answers.tokens // LEAST_STEPS)) // seq_len
    per_rank = 1 << max(0, (target // answers.gpus).bit_length() - 1)
    guess = _Sizes(seq_len, per_rank * answers.gpus, "zero2", "full", known=False)
    sizes = _fitted(answers, guess, available, shape)
    text = _text(answers, sizes)
    make_plan(parse_recipe(text), answers.gpus, ahead=Ahead(shape, None, available))
    return text


def _refuse_too_many_tokens(answers: Answers) -> None:
    """Refuse a budget for which a role would read its shards twice; shards that are not there hold enough.

    Raises:
        UserError: with a budget that is little below what is there.
    """
    replayed = answers.replay_ratio if answers.replay else Fraction(0)
    enough_for = {}
    for prefixes, share in ((answers.new, 1 - replayed), (answers.replay, replayed)):
        if share and all(has_shards(prefix) for prefix in prefixes):
            held = sum(open_tokens(prefix).tokens for prefix in prefixes)
            enough_for[", ".join(prefixes)] = held, Fraction(held) / share
    for prefixes, (held, most) in sorted(enough_for.items(), key=lambda item: item[1][1])[:1]:
        if answers.tokens > most:
            what = f"are more than {prefixes} with {held:,} tokens is enough for"
            less = int(most * Fraction(98, 100))  # phases end with a whole batch
            fix = f"give at most {less:,}, or prepare more text; max_epochs of a recipe lets it be read again"
            raise UserError(what, field="--tokens", value=answers.tokens, fix=fix)


def _context(base: str, shape: str | None) -> int:
    """Return the base's longest sequence, as far as that is known."""
    config = Path(base) / "config.json"
    name = shape or shape_named_in(base)
    try:
        found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else None
    except (OSError, ValueError):
        found = None  # the plan names what is wrong with it
    found = found or (known_shape(name) if name else {})
    return int(found.get("max_position_embeddings") or CONTEXT)


def _fitted(answers: Answers, guess: _Sizes, available: int, shape: str | None) -> _Sizes:
    """Choose the fastest preset in which samples of 16,384 tokens, or else one sample, fit into a rank."""
    plan = None
    found: dict[tuple[str, str], int] = {}
    for mode in MODES:
        recipe = parse_recipe(_text(answers, _Sizes(guess.seq_len, guess.batch, "zero2", mode, False)))
        plan = make_plan(recipe, answers.gpus, ahead=Ahead(shape, None, available))
        if not plan.model_config:
            return guess
        for fit in fits(recipe, plan.model_config, answers.gpus, available, cuda=True):
            found[fit.name, mode] = fit.largest_micro_batch
    tries = [(name, mode) for mode in MODES for name in ORDER[:3]] + [(name, "full") for name in ORDER[3:]]
    for least in (max(1, 16_384 // guess.seq_len), 1):
        for name, mode in tries:
            if found.get((name, mode), 0) >= least:
                return _Sizes(guess.seq_len, guess.batch, name, mode, known=True)
    what = f"does not fit into {answers.gpus} rank(s) of {available / 2**30:.0f} GiB under any shipped preset"
    raise UserError(what, field="--base", value=answers.base, fix="give more GPUs, or a shorter --seq-len")


def _text(answers: Answers, sizes: _Sizes) -> str:
    return "\n".join(_lines(answers, sizes)) + "\n"


def _lines(answers: Answers, sizes: _Sizes) -> Iterator[str]:
    tokenizer = answers.tokenizer or answers.base
    schema = shipped("launch/recipes") / SCHEMA_FILE
    if schema.is_file():
        yield f"# yaml-language-server: $schema={schema}"
    yield f"# Written by `rewarm recipe new` for {answers.gpus} GPU(s). Every field: docs/recipe.md."
    file = shlex.quote(answers.file)
    yield f"#   rewarm plan {file} --gpus {answers.gpus}      what it will do, before it does it"
    yield f"#   deepspeed {train_words()} {file}     train; the same command resumes"
    yield f"name: {_quoted(answers.name)}"
    yield "model:"
    yield f"  base: {_quoted(answers.base)}"
    yield f"  tokenizer: {_quoted(tokenizer)}"
    yield "  dtype: bf16"
    why = "memory is enough without" if sizes.recompute == "none" else "a third more time, far less memory"
    yield f"  activation_checkpointing: {sizes.recompute}  # {why}"
    why = "the fastest preset that fits" if sizes.known else "a guess: the base's sizes are not known yet"
    yield f"deepspeed: {_quoted(_preset(sizes.preset))}  # {why}; `rewarm plan` compares all"
    yield f"seq_len: {sizes.seq_len}"
    per_step = sizes.batch * sizes.seq_len
    yield f"global_batch_size: {sizes.batch}  # {per_step:,} tokens a step; LLaMA-2 has 4M"
    yield "sources:"
    for name, prefix, role in _sources(answers):
        yield f"  {_quoted(name)}: {{path: {_quoted(prefix)}, role: {role}}}"
    yield "phases:"
    yield from _phases(answers)
    yield "optimizer: {eps: 1e-5}  # LLaMA-2's"
    yield from _validation(answers)
    yield "checkpoint: {asynchronous: true}  # every 5 % of the run; the last three are kept"


def _phases(answers: Answers) -> Iterator[str]:
    budget = answers.tokens
    mixture = f"{{replay_ratio: {_share(answers)}}}"
    if answers.tokenizer is not None:
        first = min(10**9, budget // 20)
        budget -= first
        yield "  # The tokenizer has new pieces: their embeddings learn first, while nothing else moves."
        yield "  - name: embeddings"
        yield f"    tokens: {first:_}"
        yield "    train: embeddings"
        yield f"    mixture: {mixture}"
        yield "    schedule: {kind: cosine, max_lr: 3e-4}"
    yield "  - name: all"
    yield f"    tokens: {budget:_}"
    if answers.replay:
        yield "    # 1 % of replay removes more than half of the forgetting, 5 to 25 % nearly all"
        yield "    # (Ibrahim et al. 2024, arXiv 2403.08763)."
    else:
        yield "    # Nothing is replayed, so the base forgets: replay text of its own distribution."
    yield f"    mixture: {mixture}"
    yield "    # A larger max_lr learns more and forgets more (Gupta et al. 2023, arXiv 2308.04014)."
    yield "    # The warm-up is 1 % of the phase, and min_lr a tenth of max_lr."
    yield f"    schedule: {{kind: cosine, max_lr: {answers.max_lr}}}"


def _validation(answers: Answers) -> Iterator[str]:
    yield "validation:  # what `rewarm data prepare --validation 0.5%` holds out"
    yield "  max_tokens: 4e6"
    yield "  sets:"
    for name, prefix, role in _sources(answers):
        side = "upstream" if role == "replay" else "downstream"
        yield f"    {_quoted(name)}: {{path: {_quoted(_held_out(prefix))}, role: {side}}}"


def _held_out(prefix: str) -> str:
    """Name the held-out shards of a source: those without what is trained on, where these were written."""
    clean = Path(f"{prefix}-validation{CLEAN}")
    there = any(clean.parent.glob(f"{escape(clean.name)}*.json"))
    return str(clean) if there else f"{prefix}-validation"


def _sources(answers: Answers) -> list[tuple[str, str, str]]:
    """Name each prefix by its last part, with a number where that is taken."""
    found: list[tuple[str, str, str]] = []
    for role, prefixes in (("new", answers.new), ("replay", answers.replay)):
        for prefix in prefixes:
            name = re.sub(r"[^A-Za-z0-9]+", "-", PurePath(prefix).name).strip("-") or role
            taken = {one for one, _, _ in found}
            names = chain([name], (f"{name}-{number}" for number in count(2)))
            name = next(one for one in names if one not in taken)
            found.append((name, prefix, role))
    return found


def _share(answers: Answers) -> str:
    percent = answers.replay_ratio * 100 if answers.replay else Fraction(0)
    return f"{percent}%" if percent.denominator == 1 else str(percent / 100)


def _preset(name: str) -> str:
    """Name a shipped preset as seen from here."""
    here = Path("ds_configs") / f"{name}.json"
    path = here if here.is_file() else SHIPPED / here.name
    read_preset(path)
    return str(path)


_PLAIN = re.compile(r"[A-Za-z_/.][\w./-]*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off"}


def _quoted(text: str) -> str:
    """Write text so that YAML reads it back as text."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)
