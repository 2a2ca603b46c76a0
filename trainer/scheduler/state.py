"""The state of a run, as a checkpoint keeps it: a few counters, and the meaning of the run so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from tokenization.errors import UserError
from trainer.mixer.description import MixtureDescription, PassedOver, PastPhase
from trainer.recipe.schedule import Schedule
from trainer.recipe.schema import Optimizer, Recipe
from trainer.scheduler.curves import Curve

STATE_VERSION = 1


@dataclass(frozen=True)
class PhaseRecord:
    """A phase, as the recipe had it when it began."""

    name: str
    tokens: int
    """Budget."""
    samples: int
    """Samples that the whole phase takes."""
    train: str | list[str]
    keep_optimizer: bool
    schedule: dict[str, Any]
    """With every default filled in, as JSON."""
    data: MixtureDescription
    """All that decides which samples it takes."""
    horizon: int
    """Budget that the phase began with; see `Curve.horizon`."""
    incoming_lr: float
    """LR that the phase before, or the base, ended with."""
    rope: dict[str, Any] | None = None
    """What it changed of the model's RoPE when it began."""

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        data: Sequence[MixtureDescription],
        number: int,
        incoming_lr: float,
        horizon: int | None = None,
        done: int = 0,
    ) -> PhaseRecord:
        """Make the record of phase `number` of this recipe, of which `done` samples are consumed."""
        phase = recipe.phases[number]
        return cls(
            name=phase.name,
            tokens=phase.tokens,
            samples=recipe.phase_samples(number, done),
            train=phase.train if isinstance(phase.train, str) else list(phase.train),
            keep_optimizer=phase.keep_optimizer,
            schedule=phase.schedule.model_dump(mode="json"),
            data=data[number],
            horizon=phase.tokens if horizon is None else horizon,
            incoming_lr=incoming_lr,
            rope=phase.rope,
        )

    @cached_property
    def curve(self) -> Curve:
        """The learning rate of the phase."""
        return Curve(Schedule.model_validate(self.schedule), self.tokens, self.incoming_lr, self.horizon)

    def tokens_seen(self, samples: int) -> dict[str, int]:
        """Count the tokens by source fingerprint in the first `samples` samples of the phase."""
        found: dict[str, int] = {}
        for source, share in self.data.shares(samples).items():
            tokens = round(share * samples * self.data.seq_len)
            if tokens:
                fingerprint = self.data.sources[source].fingerprint
                found[fingerprint] = found.get(fingerprint, 0) + tokens
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a tree of plain values that `from_json` reads back to an equal record."""
        tree = {**vars(self), "data": self.data.to_json()}
        tree.pop("curve", None)  # cached
        tree["reached"] = tree.pop("incoming_lr")
        if self.rope is None:
            del tree["rope"]
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> PhaseRecord:
        """Read what `to_json` wrote."""
        tree = dict(tree)
        data, incoming_lr = MixtureDescription.from_json(tree.pop("data")), tree.pop("reached")
        return cls(**tree, data=data, incoming_lr=incoming_lr)


@dataclass(frozen=True)
class RunState:
    """The position of a run, and which run it is."""

    phases: tuple[PhaseRecord, ...]
    """The phases that have begun; the last one runs."""
    settings: dict[str, Any]
    """Recipe fields outside the phases that must not change within a run; see `settings_of`."""
    samples: int = 0
    """Consumed in this phase: the position in the data."""
    phase_trained_tokens: int = 0
    """Trained in this phase, without skipped steps: the learning rate depends on it."""
    tokens: int = 0
    """Consumed in the whole run."""
    trained_tokens: int = 0
    """Trained in the whole run."""
    step: int = 0
    """Optimizer steps in the whole run, skipped ones included."""
    lr: float | None = None
    """LR of the last step; None before the first."""
    seen_before: dict[str, int] = field(default_factory=dict)
    """Tokens by source fingerprint that the base was trained on."""
    peak_before: float | None = None
    """The base's highest LR, if it is known."""
    left_out: tuple[PassedOver, ...] = ()
    """Samples that the run has passed over, or will when it comes to them."""
    vitals: dict[str, Any] = field(default_factory=dict)
    """What the run remembers of the phase's last steps, to judge the next ones by; see `run.health`."""
    decisions: tuple[dict[str, Any], ...] = ()
    """Every decision about the replay so far, of all phases; see `mixer.decisions`."""
    measured: dict[str, Any] = field(default_factory=dict)
    """The upstream documents that decisions are measured on, and the base's losses on them."""
    version: int = STATE_VERSION

    @property
    def phase(self) -> int:
        """Number of the running phase, from 0."""
        return len(self.phases) - 1

    @property
    def running(self) -> PhaseRecord:
        """The running phase."""
        return self.phases[-1]

    @property
    def phase_name(self) -> str:
        """Name of the running phase."""
        return self.running.name

    @property
    def phase_done(self) -> bool:
        """Whether the phase has consumed all its samples."""
        return self.samples >= self.running.samples

    @property
    def next_lr(self) -> float:
        """LR of the next step of this phase; once the phase is done, its last LR."""
        return float(self.running.curve(self.phase_trained_tokens)) * self.lr_factor

    @property
    def phase_decisions(self) -> list[dict[str, Any]]:
        """The decisions of the running phase."""
        return [one for one in self.decisions if one["phase"] == self.phase]

    @property
    def lr_factor(self) -> float:
        """By how much the decisions of the running phase have lowered its LR: halved, halved again, …"""
        return 0.5 ** sum(one["action"] == "lower_lr" for one in self.phase_decisions)

    @property
    def over_budget(self) -> dict[str, Any] | None:
        """The last decision of the phase, if it was to stop since the forgetting budget cannot be held."""
        last = self.phase_decisions[-1:]
        return last[0] if last and last[0]["action"] == "stop" else None

    @property
    def peak_lr(self) -> float:
        """The highest LR of the phases so far and of the base."""
        return max([phase.curve.peak for phase in self.phases] + [self.peak_before or 0.0])

    def after_step(self, samples: int, *, lr: float, trained: bool = True) -> RunState:
        """Return the state after an optimizer step over so many samples.

        A skipped step (`trained=False`: overflow, non-finite gradients) consumes its samples, but does not
        advance the schedule.
        """
        tokens = samples * self.running.data.seq_len
        return replace(
            self,
            samples=self.samples + samples,
            phase_trained_tokens=self.phase_trained_tokens + trained * tokens,
            tokens=self.tokens + tokens,
            trained_tokens=self.trained_tokens + trained * tokens,
            step=self.step + 1,
            lr=lr,
        )

    def last_step_skipped(self, samples: int) -> RunState:
        """Return the state if the last step, over so many samples, turns out not to have been applied."""
        tokens = samples * self.settings["seq_len"]
        return replace(
            self,
            phase_trained_tokens=self.phase_trained_tokens - tokens,
            trained_tokens=self.trained_tokens - tokens,
        )

    def leaves_out(self, samples: int) -> bool:
        """Tell whether the next so many samples are passed over."""
        return any(one.touches(self.phase, self.samples, self.samples + samples) for one in self.left_out)

    def with_left_out(self, recorded: Sequence[PassedOver]) -> RunState:
        """Return the state with what the run directory records as left out, as far as it is still to come."""
        ahead = {one for one in recorded if (one.phase, one.start) >= (self.phase, self.samples)}
        return replace(self, left_out=tuple(sorted(ahead | set(self.left_out))))

    def tokens_seen(self) -> dict[str, int]:
        """Count the tokens by source fingerprint that all weights were trained on, in the base too."""
        found = dict(self.seen_before)
        for number, record in enumerate(self.phases):
            if record.train == "all":
                samples = self.samples if number == self.phase else record.samples
                for fingerprint, tokens in record.tokens_seen(samples).items():
                    found[fingerprint] = found.get(fingerprint, 0) + tokens
        return found

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of every source that a phase so far takes from, by its name."""
        return {
            name: source.fingerprint for record in self.phases for name, source in record.data.sources.items()
        }

    def past(self) -> tuple[PastPhase, ...]:
        """Return the phases that have begun and what they have consumed, for the mixer."""
        done = [*(record.samples for record in self.phases[:-1]), self.samples]
        return tuple(PastPhase(n, record.data) for n, record in zip(done, self.phases, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return a tree of plain values that `from_json` reads back to an equal state."""
        tree = {**vars(self), "phases": [record.to_json() for record in self.phases]}
        tree["left_out"] = [vars(one) for one in self.left_out]
        tree["decisions"] = list(self.decisions)
        for name in (
            "left_out",
            "vitals",
            "decisions",
            "measured",
        ):  # a run without them is written as it always was
            if not tree[name]:
                del tree[name]
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> RunState:
        """Read what `to_json` wrote.

        Raises:
            UserError: another version wrote it, or it is damaged.
        """
        if tree.get("version") != STATE_VERSION:
            what = "is not a version of the run state that this release reads"
            fix = f"use the release that wrote it, or a state of version {STATE_VERSION}"
            raise UserError(what, field="version", value=tree.get("version"), fix=fix)
        try:
            phases = tuple(map(PhaseRecord.from_json, tree["phases"]))
            left_out = tuple(PassedOver(**one) for one in tree.get("left_out", ()))
            decisions = tuple(tree.get("decisions", ()))
            return cls(**{**tree, "phases": phases, "left_out": left_out, "decisions": decisions})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"the run state is damaged ({error})") from error


@dataclass(frozen=True)
class BaseLineage:
    """What is known about the weights that a run starts from."""

    name: str
    lr: float | None = None
    """Their last LR; None if they are not ours."""
    peak: float | None = None
    """Their highest LR, if it is known."""
    seen: dict[str, int] = field(default_factory=dict)
    """Tokens by source fingerprint that they were trained on."""
    new_rows: int = 0
    """Embedding rows appended for the recipe's tokenizer."""
    optimizer: bool = False
    """Whether the optimizer's moments are stored with them."""

    @classmethod
    def of(cls, state: RunState, name: str, new_rows: int = 0, *, optimizer: bool = True) -> BaseLineage:
        """Return the lineage of one of our checkpoints, or of an export of one (`optimizer=False`)."""
        return cls(
            name, state.next_lr, state.peak_lr, state.tokens_seen(), new_rows, optimizer and not new_rows
        )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's fields outside the phases that must not change within a run.

    World size, micro batch, ZeRO stage, offload, attention, paths, logging, the cadence of validation and
    checkpoints, and stop_after are not among them. Only the last part of a base's path is: files may move.
    """
    base = recipe.model.base
    return {
        "seq_len": recipe.seq_len,
        "global_batch_size": recipe.global_batch_size,
        "seed": recipe.seed,
        "document_mask": recipe.document_mask,
        "model.base": None if base is None else PurePath(base).name,
        "model.init": recipe.model.init,
        "model.dtype": recipe.model.dtype,
        **optimizer_settings(recipe.optimizer),
    }


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Return the part of `settings_of` that is the optimizer's."""
    return {f"optimizer.{name}": value for name, value in optimizer.model_dump(mode="json").items()}
