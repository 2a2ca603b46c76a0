"""Losses of a model that is not being trained: a directory, a hub id, or one of our checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from tokenization.fingerprint import core, same
from tokenization.shards import TokenStore, open_tokens
from trainer.checkpoint import commit, portable
from trainer.checkpoint.take import find
from trainer.errors import Problems, UserError
from trainer.evaluation import Rows, Score, evaluate
from trainer.model.architecture import read_config
from trainer.model.build import build, load
from trainer.model.loss import CausalLM
from trainer.model.tokens import TOKENIZER, fingerprint_of
from trainer.recipe import parse

_MORE = "give a larger --validation, or another shard"


class _Alone:
    """Scores rows with a model on one device."""

    def __init__(self, model: CausalLM) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)

    @torch.no_grad()
    def score(self, micro: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats and target tokens of each row, [micro] each."""
        arrays = (torch.from_numpy(array).to(self.device) for array in (micro.input_ids, micro.targets))
        _, nats, targets = self.model(*arrays)
        return nats.double(), targets.double()


def _silent(line: str) -> None:
    pass


def score_model(
    model: str,
    prefixes: Sequence[str],
    seq_len: int | None = None,
    max_tokens: int | None = None,
    say: Callable[[str], None] = _silent,
) -> dict[str, Score]:
    """The loss of `model` on each token shard; `say` is told what could not be compared.

    `seq_len` is the context that every window of the text has; by default what the run was trained with,
    else the model's own, at most 4,096.

    Raises:
        UserError: no such model or shard, an empty shard, or shards of another tokenizer than the model's.
    """
    stores = {prefix: open_tokens(prefix) for prefix in prefixes}
    if problems := [
        UserError(f"has {store.tokens} token(s), none to score", field="--data", value=prefix, mend=_MORE)
        for prefix, store in stores.items()
        if store.tokens < 2
    ]:
        raise Problems(problems)
    sizes = {store.vocab_size for store in stores.values()}
    if len(sizes) > 1:
        raise UserError(
            f"vocabularies differ: {sorted(sizes)}", field="--data", mend="give shards of one tokenizer"
        )
    for line in hold_tokenizer(model, stores):
        say(line)
    causal, trained_seq_len = _open(model, sizes.pop())
    _check_rows(model, causal, stores)
    length = seq_len or trained_seq_len or min(causal.hf.config.max_position_embeddings, 4096)
    scorer = _Alone(causal)
    return {
        prefix: evaluate(scorer, store, seq_len=length, micro_batch_size=4, max_tokens=max_tokens)
        for prefix, store in stores.items()
    }


def tokenizer_of(model: str) -> str | None:
    """The fingerprint of the tokenizer that a model, checkpoint or run was made for; None: nothing tells."""
    path = Path(model)
    if (path / "checkpoints").is_dir():
        good, _ = commit.scan(path / "checkpoints")
        path = good[-1].path if good else path
    if (path / commit.MARKER).exists():
        found = read_config(path).get(TOKENIZER) if (path / "config.json").is_file() else None
        return found if isinstance(found, str) else None
    return fingerprint_of(model, read_config(model))


def hold_tokenizer(model: str, stores: Mapping[str, TokenStore]) -> list[str]:
    """Hold the shards against the tokenizer of the model; lines to be told.

    Raises:
        Problems: shards of another tokenizer, on which a loss would mean nothing.
    """
    wanted = tokenizer_of(model)
    if wanted is None:
        return [f"{model}: nothing tells its tokenizer, so the shards' was not compared with it"]
    others = {prefix: store for prefix, store in stores.items() if not same(store.tokenizer, wanted)}
    problems = [
        UserError(
            f"was made with tokenizer {store.tokenizer}, and {model} is of {wanted}",
            field="--data",
            value=prefix,
            mend="prepare it with the model's own tokenizer",
        )
        for prefix, store in others.items()
        if core(store.tokenizer) != core(wanted)
    ]
    if problems:
        raise Problems(problems)
    return [f"{prefix}: EOS, BOS or added tokens are not those of {model}'s tokenizer" for prefix in others]


def _open(model: str, vocab_size: int) -> tuple[CausalLM, int | None]:
    """The model in fp32, and the seq_len that it was trained with where that is known."""
    path = Path(model)
    if not ((path / commit.MARKER).exists() or (path / "checkpoints").is_dir()):
        return load(model, vocab_size), None
    checkpoint = find(path)
    recipe = parse(checkpoint.manifest.recipe, ["model.dtype=fp32"])
    causal = build(recipe, vocab_size, weights=False)
    reader = portable.Reader(checkpoint.files)
    with torch.no_grad():
        for name, parameter in causal.named_parameters():
            parameter.copy_(reader.whole(name))
    return causal, recipe.seq_len


def _check_rows(model: str, causal: CausalLM, stores: dict[str, TokenStore]) -> None:
    rows = causal.hf.get_input_embeddings().weight.shape[0]
    problems = [
        UserError(
            f"has ids up to {store.vocab_size - 1}, and {model} has {rows} embedding rows",
            field="--data",
            value=prefix,
            mend="prepare it with the model's own tokenizer",
        )
        for prefix, store in stores.items()
        if store.vocab_size > rows
    ]
    if problems:
        raise Problems(problems)
