"""The recipe: every option of a run, with its unit, default and check; parsing has no side effects."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tokenization.errors import did_you_mean
from trainer.recipe.fields import Count, Exact, Positive, Rate, Section
from trainer.recipe.forgetting import START_RATIO, Average, ForgettingBudget
from trainer.recipe.health import Health
from trainer.recipe.numbers import count
from trainer.recipe.schedule import Schedule
from trainer.recipe.validation import Probe, Validation


class EveryN(Section):
    """Recomputation of some layers."""

    every_n: Annotated[Positive, Field(ge=2)]
    """Each layer whose number is a multiple of it is computed again; 1 would be `full`."""


class Model(Section):
    """Where the first weights come from, and how the model computes."""

    tokenizer: str
    """Tokenizer directory (or SentencePiece `.model` file); its fingerprint must match the shards'."""
    base: str | None = None
    """Weights to start from: a directory, a hub id, an export, or one of our checkpoints."""
    init: dict[str, Any] | None = None
    """Hugging Face config fields for random initial weights, instead of `base`."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the forward and backward passes; master weights are always fp32."""
    activation_checkpointing: Literal["none", "full", "offload"] | EveryN = "none"
    """What is computed again in the backward pass: `full`, each layer (less memory, a third more time);
    `every_n: 2`, every second one; `offload`, each layer, and their inputs wait in host memory."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """The implementation; `auto` is FlashAttention on a GPU where the package is installed, else SDPA; on
    a GPU in 16 bits with PyTorch's kernels for documents in place of a mask."""
    loss: Literal["auto", "torch", "liger"] = "auto"
    """Who computes the output layer's loss: PyTorch (`auto` is that today), or Liger's kernel, on GPUs."""
    compile: bool = False
    """Compile the decoder layers with `torch.compile`: faster steps after a first one that takes minutes."""
    average: Average | None = None
    """Averaged weights beside the trained ones: measured, saved, and exported with `--average`."""

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.base is None) == (self.init is None):
            raise ValueError("give exactly one of base (existing weights) and init (random weights)")
        return self


Decay = Annotated[Rate, Field(lt=1)]
"""How much of a moving average is kept at each step."""


class Optimizer(Section):
    """AdamW; the defaults are LLaMA-2's settings."""

    beta1: Decay = 0.9
    """How much of the first moment is kept at each step."""
    beta2: Decay = 0.95
    """How much of the second moment is kept at each step."""
    eps: Annotated[Rate, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Rate = 0.1
    """Applied to matrices only, not to norms and biases."""
    grad_clip: Rate = 1.0
    """Largest global gradient norm; 0 does not clip."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of AdamW's moments; bf16 saves 4 bytes per parameter, and beta2 may be 0.99 at most."""
    z_loss: Rate = 0.0
    """The factor of log²(Z) per token, which keeps the logits of long cool-downs small; 0 adds nothing."""

    @model_validator(mode="after")
    def _moments_move(self) -> Optimizer:
        if self.state_dtype == "bf16" and self.beta2 > 0.99:
            raise ValueError(
                f"state_dtype bf16 with beta2 {self.beta2}: steps this small are rounded away; use fp32, "
                "or a beta2 of at most 0.99"
            )
        return self


class Source(Section):
    """A named token corpus."""

    path: str
    """The prefix that `rewarm data prepare` wrote."""
    role: Literal["new", "replay"]
    """`new`: data to learn; `replay`: data that must not be forgotten."""
    max_epochs: Exact | None = Fraction(1)
    """How often each sample may be used; null: as often as needed."""
    order: Literal["shuffled", "sequential", "blocks"] = "shuffled"
    """A keyed permutation per epoch, the order on disk, or shuffled within windows of `block` samples."""
    block: Positive = 4096
    """Samples in a window of order `blocks`."""
    offset: Count = 0
    """First sample of order `sequential`: where the base model's pass over this source began."""


class Segment(ForgettingBudget):
    """Weights of the sources, from a token of the phase on."""

    start: Count = 0
    """Tokens into the phase (written `from`)."""
    replay_ratio: Exact | None = None
    """The replay sources' total weight; each role's share is split by `weights`, else by size.

    With a `forgetting_budget` it is where the run starts.
    """
    weights: dict[str, Exact] = Field(default_factory=dict)
    """Share of the tokens by source; the shares add up to 1, unless `replay_ratio` splits them."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, written: Any) -> Any:
        """Read `{zh-web: 0.75, en-web: 0.25}`, as recipes write it: names that are not fields are sources."""
        if not isinstance(written, Mapping) or "weights" in written:
            return written
        rest = dict(written)
        if "from" in rest:
            rest["start"] = rest.pop("from")
        known = [name for name in cls.model_fields if name != "weights"]
        fields = {name: rest.pop(name) for name in known if name in rest}
        if fields.get("forgetting_budget") is not None:
            fields.setdefault("replay_ratio", START_RATIO)
        return {**fields, "weights": rest}


_TRAINED = ("all", "embeddings", "new_rows")


class Phase(Section):
    """A mixture, a schedule, a token budget, and what is trained."""

    name: str
    """Another one for each phase; overrides may use it: `phases.embeddings.tokens=1e9`."""
    tokens: Positive
    """Budget and horizon of the schedule; an `anneal` may end the phase before or after it."""
    mixture: tuple[Segment, ...] = Field(min_length=1)
    """Shares of the tokens: `{zh-web: 75%, en-web: 25%}`, `{replay_ratio: 25%}`, or a list with `from`."""
    schedule: Schedule
    """The learning rate over this phase."""
    train: Literal["all", "embeddings", "new_rows"] | tuple[str, ...] = "all"
    """What is trained; a list holds regular expressions searched in parameter names."""
    keep_optimizer: bool = False
    """Keep the optimizer's moments from the phase before, instead of a reset."""
    seq_len: Positive | None = None
    """Tokens in a sample from this phase on; a phase without it keeps that of the phase before."""
    rope: dict[str, Any] | None = None
    """RoPE from this phase on: fields of `rope_parameters` in config.json, as `rope_theta` and `factor`."""

    @field_validator("mixture", mode="before")
    @classmethod
    def _segments(cls, written: Any) -> Any:
        return [written] if isinstance(written, Mapping) else written

    @field_validator("train", mode="before")
    @classmethod
    def _trained(cls, written: Any) -> Any:
        if isinstance(written, str) and written not in _TRAINED:
            fix = did_you_mean(written, _TRAINED) or f"write {', '.join(_TRAINED)}, or a list of patterns"
            raise ValueError(f"{written!r} is not a group of parameters; {fix}")
        if written == []:
            raise ValueError("an empty list trains nothing; write all, or patterns of parameter names")
        return written

    @property
    def steered(self) -> ForgettingBudget | None:
        """The forgetting budget by which the run sets its own replay, if the phase has one."""
        return next((one for one in self.mixture if one.forgetting_budget is not None), None)

    @property
    def length(self) -> int:
        """Tokens after which the phase ends: the end of its anneal, else its budget."""
        anneal = self.schedule.anneal
        return self.tokens if anneal is None else anneal.from_tokens + anneal.tokens

    @model_validator(mode="after")
    def _fitting(self) -> Phase:
        problems = [f"schedule: {line}" for line in self.schedule.misfits(self.tokens)]
        for segment in self.mixture:
            problems += [f"mixture: {line}" for line in segment.budget_problems(segment.replay_ratio)]
        if self.steered and len(self.mixture) > 1:
            problems.append("mixture: with a forgetting_budget it has one segment, whose ratio is decided")
        if self.train == "new_rows" and "embeddings" in self.schedule.lr_scale:
            problems.append("schedule: lr_scale.embeddings has no effect where only new_rows are trained")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Checkpointing(Section):
    """When the run is saved, and what is kept."""

    every_tokens: Positive | None = None
    """Default: every 5 % of the run, and twice at least."""
    keep_last: Annotated[int, BeforeValidator(count), Field(ge=2)] = 3
    """At least 2, since a crash may have damaged the newest."""
    keep_every: Positive | None = None
    """Never delete the first checkpoint in each stretch of so many tokens."""
    asynchronous: bool = False
    """Write in the background from a snapshot in host memory."""
    mirror: str | None = None
    """Copy each committed checkpoint to this place, too, as s3://bucket/runs, in the background (fsspec)."""
    on_failure: Literal["stop", "continue"] = "stop"
    """Whether a save that fails, for example on a full disk, stops the run."""


class Logging(Section):
    """Where metrics are written; `metrics.jsonl` always is."""

    every_steps: Positive = 1
    """Steps between two lines of metrics."""
    tensorboard: bool = True
    """Write TensorBoard event files, too."""
    wandb_project: str | None = None
    """Log to this project of Weights & Biases, too; needs the package `wandb`."""
    mlflow_experiment: str | None = None
    """Log to this experiment of MLflow, too; needs the package `mlflow`, and `MLFLOW_TRACKING_URI`."""
    profile_steps: Count = 0
    """Steps that each start traces with PyTorch's profiler, after five that warm up (`--profile`)."""


class Recipe(Section):
    """A whole run."""

    name: str
    """The run's name; it names its default run directory, too."""
    model: Model
    """The base, its tokenizer, and how it computes."""
    deepspeed: str
    """The ds_config: how memory is sharded, and nothing else."""
    seq_len: Positive
    """Tokens in a sample, and in a window of validation text."""
    global_batch_size: Positive
    """Samples of `seq_len` in an optimizer step; phases with another one have as many tokens in a step."""
    sources: dict[str, Source] = Field(min_length=1)
    """The token corpora, by names that mixtures use."""
    phases: tuple[Phase, ...] = Field(min_length=1)
    """What is trained, one phase after another."""
    validation: Validation = Validation()
    """Held-out text; without it nothing is watched."""
    probe: Probe | None = None
    """Prompts whose continuations are shown at each validation."""
    checkpoint: Checkpointing = Checkpointing()
    """When the run is saved."""
    micro_batch_size: Positive | Literal["auto"] = "auto"
    """Samples per rank (per group of ranks with `sequence_parallel_size`) and forward pass."""
    sequence_parallel_size: Positive = 1
    """Ranks that share every sample: each holds a part of the sequence (Ulysses), for long `seq_len`."""
    run_dir: str | None = None
    """The run directory; default `runs/NAME`."""
    seed: Count = 0
    """Of the data order and of random weights."""
    document_mask: Literal["none", "causal_per_document"] = "none"
    """Whether attention may cross documents within a sample."""
    optimizer: Optimizer = Optimizer()
    """AdamW's settings."""
    logging: Logging = Logging()
    """Where metrics are written."""
    health: Health = Health()
    """What is done about bad steps."""
    stop_after: Positive | None = None
    """End the run early after so many tokens in all; no learning rate changes."""
    allow: tuple[str, ...] = ()
    """Warnings to silence and refusals to lift, by name."""

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _auto(cls, written: Any) -> Any:
        return written if written == "auto" else count(written)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.run_dir or f"runs/{self.name}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens in an optimizer step."""
        return self.seq_len * self.global_batch_size

    @property
    def validate_every(self) -> int:
        """Tokens between two validations."""
        return self.validation.every_tokens or self._twentieth

    @property
    def tasks_every(self) -> int:
        """Tokens between two evaluations of `validation.tasks`, if there are any."""
        given = None if self.validation.tasks is None else self.validation.tasks.every_tokens
        return given or max(1, sum(phase.length for phase in self.phases) // 4)

    @property
    def save_every(self) -> int:
        """Tokens between two checkpoints."""
        return self.checkpoint.every_tokens or self._twentieth

    @property
    def _twentieth(self) -> int:
        """Return 5 % of the run's tokens, or half of what `stop_after` leaves of it if that is less."""
        whole = sum(phase.length for phase in self.phases)
        return max(1, min(whole // 20, (self.stop_after or whole) // 2))

    def seq_len_of(self, phase: int) -> int:
        """Return the tokens in a sample of a phase."""
        given = [one.seq_len for one in self.phases[: phase + 1] if one.seq_len is not None]
        return given[-1] if given else self.seq_len

    def batch_of(self, phase: int) -> int:
        """Return the samples in an optimizer step of a phase: every phase has as many tokens in a step."""
        return self.tokens_per_step // self.seq_len_of(phase)

    def phase_samples(self, phase: int, done: int = 0) -> int:
        """Return the samples of a phase: its length in whole global batches, counted from `done` samples on.

        A phase that consumed `done` samples in batches of another size ends a whole number of batches later.
        """
        left = max(0, -(-self.phases[phase].length // self.seq_len_of(phase)) - done)
        return done + -(-left // self.batch_of(phase)) * self.batch_of(phase)

    @model_validator(mode="after")
    def _cross_field(self) -> Recipe:
        problems = []
        known = set(self.sources)
        for number, phase in enumerate(self.phases):
            where = f"phases.{number}.mixture"
            for segment in phase.mixture:
                for name in segment.weights:
                    if name not in known:
                        fix = did_you_mean(name, known) or f"sources are {', '.join(sorted(known))}"
                        problems.append(f"{where}: {name!r} is not a source; {fix}")
                total = sum(segment.weights.values())
                if segment.replay_ratio is None and total != 1:
                    problems.append(f"{where}: weights add up to {total}, not to 1")
                if segment.replay_ratio is not None and segment.replay_ratio > 1:
                    problems.append(f"{where}: replay_ratio {segment.replay_ratio} is above 1")
            starts = [segment.start for segment in phase.mixture]
            if starts != sorted(set(starts)) or starts[0] != 0:
                problems.append(
                    f"{where}: the first segment must begin at 0 and each one after the last, not at {starts}"
                )
            if phase.steered and phase.steered.on_failure == "pull_to_base" and self.model.base is None:
                problems.append(f"{where}.on_failure: pull_to_base needs a model.base")
            if phase.steered and self.validation.upstream is None:
                problems.append(
                    f"{where}.forgetting_budget: needs validation.upstream, which it is measured on"
                )
        if self.probe is not None and self.sequence_parallel_size > 1:
            problems.append("probe: prompts cannot be continued where ranks share samples; leave it out")
        if self.validation.tasks is not None and self.sequence_parallel_size > 1:
            problems.append(
                "validation.tasks: tasks cannot be answered where ranks share samples; leave it out"
            )
        problems += self._length_problems()
        for phase in self.phases:
            phase.schedule.fit_to_steps(
                min(phase.length, phase.tokens // phase.schedule.cycles), self.tokens_per_step
            )
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            problems.append(f"phases: phases need different names, not {names}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _length_problems(self) -> list[str]:
        """Find phases whose samples do not fit into a step, or into the samples of other phases."""
        lengths = [self.seq_len_of(number) for number in range(len(self.phases))]
        problems = []
        for number, length in enumerate(lengths):
            field = f"phases.{number}.seq_len"
            if self.phases[number].seq_len is None:
                continue
            if self.tokens_per_step % length:
                problems.append(
                    f"{field}: {length} does not divide the {self.tokens_per_step:,} tokens of a step, "
                    f"global_batch_size {self.global_batch_size} x seq_len {self.seq_len}"
                )
            other = next((one for one in (self.seq_len, *lengths) if one % length and length % one), None)
            if other is not None:
                problems.append(
                    f"{field}: {length} is neither a multiple nor a divisor of another seq_len, {other}: "
                    "what one phase has read could not be left out by the other"
                )
        return problems
