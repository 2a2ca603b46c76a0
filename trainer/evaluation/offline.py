"""Score a model outside of a run: a directory, a hub id, or one of our checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokenization.errors import UserError, UserErrors
from tokenization.shards.store import TokenStore, open_tokens
from tokenization.tokenizer.fingerprint import core, same
from trainer.checkpoint import history, manifest, rank_files
from trainer.checkpoint.history import find_checkpoint
from trainer.evaluation.held_out import Score, evaluate
from trainer.machine.log_lines import logger
from trainer.mixer.batch import MicroBatch
from trainer.model.architecture import check_config, read_config
from trainer.model.build import build_model, load_model
from trainer.model.loss import CausalLM
from trainer.model.tokens import TOKENIZER, fingerprint_of
from trainer.recipe.load import parse_recipe
from trainer.storage.run_directory import EXPORTED, RunDirectory

_MORE = "give a larger --validation, or another shard"


class LoneScorer:
    """Score rows with a model on one device."""

    def __init__(self, model: CausalLM) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)

    @torch.no_grad()
    def score(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nats and the target tokens of each row: [micro_batch_size] each."""
        arrays = (micro.input_ids, micro.targets, micro.positions)
        _, nats, targets = self.model(
            *(None if array is None else torch.from_numpy(array).to(self.device) for array in arrays)
        )
        return nats.double(), targets.double()

    @torch.no_grad()
    def score_tokens(self, micro: MicroBatch) -> torch.Tensor:
        """Return the nats of each target: [micro_batch_size, seq_len]."""
        arrays = (micro.input_ids, micro.targets, micro.positions)
        tensors = (None if array is None else torch.from_numpy(array).to(self.device) for array in arrays)
        nats: torch.Tensor = self.model(*tensors, by_token=True)[1]
        return nats


def score_model(
    model: str,
    prefixes: Sequence[str],
    seq_len: int | None = None,
    max_tokens: int | None = None,
    document_mask: str | None = None,
    field: str = "--data",
) -> dict[str, Score]:
    """Return the loss of `model` on each token shard; what cannot be compared is logged.

    `seq_len` is the length of each window of text: by default that of the run (see `run_seq_len`), else the
    model's context, at most 4,096. Attention is within documents where `document_mask` says so, by default
    that of the run. `field` is what an error calls the shards.

    Raises:
        UserError: the model or a shard does not exist, a shard is empty, or has another tokenizer than the
            model, or `seq_len` is beyond the model's context.
    """
    stores = {prefix: open_tokens(prefix) for prefix in prefixes}
    if problems := [
        UserError(f"has {store.tokens} token(s), none to score", field=field, value=prefix, fix=_MORE)
        for prefix, store in stores.items()
        if store.tokens < 2
    ]:
        raise UserErrors(problems)
    sizes = {store.vocab_size for store in stores.values()}
    if len(sizes) > 1:
        what = f"vocabulary sizes differ: {sorted(sizes)}"
        raise UserError(what, field=field, fix="give shards of one tokenizer")
    for line in hold_tokenizer(model, stores, field):
        logger.warning(line)
    causal = open_scored(model, sizes.pop())
    _check_rows(model, causal, stores)
    _check_context(model, causal, seq_len)
    mask = document_mask or run_document_mask(model)
    length = seq_len or run_seq_len(model) or min(causal.hf.config.max_position_embeddings, 4096)
    scorer = LoneScorer(causal)
    return {
        prefix: evaluate(
            scorer,
            store,
            seq_len=length,
            micro_batch_size=4,
            max_tokens=max_tokens,
            document_mask=mask,
        )
        for prefix, store in stores.items()
    }


def run_seq_len(model: str) -> int | None:
    """The seq_len of the run that a checkpoint, a run or an export is of; None for another model.

    Raises:
        UserError: as `_setting`.
    """
    found = _setting(model, "seq_len")
    return None if found is None else int(found)


def run_document_mask(model: str) -> str:
    """The document_mask of the run that a checkpoint, a run or an export is of; `none` for another model.

    Raises:
        UserError: as `_setting`.
    """
    return str(_setting(model, "document_mask") or "none")


def _setting(model: str, name: str) -> Any:
    """A recipe field of the run that a model is of; None of a model that is not of a run.

    Raises:
        UserError: the run has no good checkpoint, or what tells its state is damaged.
    """
    path = Path(model)
    if _is_run(path):
        return getattr(parse_recipe(find_checkpoint(path).manifest.recipe), name)
    file = path / EXPORTED
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))["settings"][name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("does not tell the state of a run", file=file, fix="export it again") from error


def tokenizer_of(model: str) -> str | None:
    """The fingerprint of the tokenizer that a model, checkpoint or run was made for; None: nothing tells."""
    path = Path(model)
    if (holds := _checkpoints_of(path)) is not None:
        good, _ = history.scan_checkpoints(holds)
        path = good[-1].path if good else path
    if (path / manifest.MARKER).exists():
        found = read_config(path).get(TOKENIZER) if (path / "config.json").is_file() else None
        return found if isinstance(found, str) else None
    return fingerprint_of(model, read_config(model))


def _checkpoints_of(path: Path) -> Path | None:
    """Return the folder of checkpoints in a run directory, or `path` itself where it is such a folder."""
    if (own := RunDirectory(path).checkpoints).is_dir():
        return own
    return path if path.is_dir() and history.list_checkpoints(path) else None


PREPARE = "prepare it with the model's own tokenizer"
"""What to do with shards of another tokenizer."""


def hold_tokenizer(
    model: str, stores: Mapping[str, TokenStore], field: str = "--data", fix: str = PREPARE
) -> list[str]:
    """Compare the tokenizer of the shards with that of the model; return warnings.

    Raises:
        Problems: shards of another tokenizer, on which a loss would mean nothing.
    """
    wanted = tokenizer_of(model)
    if wanted is None:
        return [f"{model}: nothing tells its tokenizer, so the shards' was not compared with it"]
    others = {prefix: store for prefix, store in stores.items() if not same(store.tokenizer, wanted)}
    problems = [
        UserError(
            f"was made with tokenizer {store.tokenizer}, but {model} is of {wanted}",
            field=field,
            value=prefix,
            fix=fix,
        )
        for prefix, store in others.items()
        if core(store.tokenizer) != core(wanted)
    ]
    if problems:
        raise UserErrors(problems)
    return [f"{prefix}: EOS, BOS or added tokens are not those of {model}'s tokenizer" for prefix in others]


def _is_run(path: Path) -> bool:
    """Whether a path is a checkpoint or a run directory."""
    return (path / manifest.MARKER).exists() or _checkpoints_of(path) is not None


def open_scored(model: str, vocab_size: int) -> CausalLM:
    """Open a model, a checkpoint or a run's newest one in fp32.

    Raises:
        UserError: it is missing or damaged.
    """
    path = Path(model)
    if not _is_run(path):
        return load_model(model, vocab_size)
    checkpoint = find_checkpoint(path)
    recipe = parse_recipe(checkpoint.manifest.recipe, ["model.dtype=fp32"])
    config = read_config(checkpoint.path)
    if problems := check_config(config, recipe, vocab_size, vocab_size):
        raise UserErrors(problems)
    causal = build_model(config, recipe, vocab_size, weights=False)
    reader = rank_files.Reader(checkpoint.files)
    with torch.no_grad():
        for name, parameter in causal.named_parameters():
            parameter.copy_(reader.whole(name))
    return causal


def _check_context(model: str, causal: CausalLM, seq_len: int | None) -> None:
    context = causal.hf.config.max_position_embeddings
    if seq_len is not None and seq_len > context:
        what = f"is beyond the context of {model}: its max_position_embeddings is {context}"
        raise UserError(
            what, field="--seq-len", value=seq_len, fix=f"give at most {context}, or leave it out"
        )


def _check_rows(model: str, causal: CausalLM, stores: dict[str, TokenStore]) -> None:
    rows = causal.hf.get_input_embeddings().weight.shape[0]
    problems = []
    for prefix, store in stores.items():
        if store.vocab_size > rows:
            what = f"has ids up to {store.vocab_size - 1}, but {model} has only {rows} embedding rows"
            problems.append(UserError(what, field="--data", value=prefix, fix=PREPARE))
    if problems:
        raise UserErrors(problems)
