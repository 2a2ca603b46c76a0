"""`rewarm data generate`: a corpus to replay, drawn from the base itself, in parts that survive a kill.

Every rank appends what it draws to a journal in `PREFIX.generating/`, batch by batch. Batch b of rank r is
drawn with a seed of its own, so that a rank that was killed goes on with the batch after the last whole one,
and the text is the same. The rank that ends last removes what two ranks have drawn alike, draws what is
missing then, and writes the shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash

from tokenization.disk import checksum, disk_errors, sync_path, with_ending, write_atomically
from tokenization.errors import InfrastructureError, UserError
from tokenization.shards.format import ShardMeta, token_dtype
from tokenization.shards.writer import ShardWriter
from tokenization.tokenizer.decoder import decoder_of
from tokenization.tokenizer.files import Tokenizer, open_tokenizer
from tokenization.tokenizer.fingerprint import same
from trainer.machine.local_ranks import run_ranks
from trainer.machine.log_lines import EVERY_RANK, logger
from trainer.machine.ranks import World, current_world
from trainer.model.architecture import check_type, read_config
from trainer.model.build import load_model
from trainer.model.drawn import DrawnCounts, Journal, digest_of, keep_documents
from trainer.model.sampling import SamplingRules, sample_documents
from trainer.model.tokens import TOKENIZER
from trainer.model.trained import BASE_ROWS
from trainer.storage.hub import local_directory
from trainer.storage.records import append_record
from trainer.storage.run_directory import EXPORTED
from trainer.storage.weight_files import weight_paths

JOB = "job.json"

DOCUMENTS_AT_ONCE = 32
"""Documents that a rank draws at a time by default."""

_LONGEST = 2048
"""Tokens of a document by default, where the model's context is as long."""

_ENOUGH, _FEWEST = 1000, 0.02
"""After so many drawn documents, a share below this that was kept ends the job."""

_SAID_EVERY_S = 10.0


@dataclass(frozen=True)
class GenerateJob:
    """All that decides the text, and the number of tokens."""

    model: str
    weights: str
    """Checksum of the model's weights and config."""
    tokenizer: str
    tokens: int
    temperature: float
    seed: int
    world_size: int
    batch: int
    """Documents that a rank draws at a time."""
    longest: int
    starts_with: str
    """The token that every document follows; it is not a part of it."""
    pieces: int
    """Pieces that may be drawn, EOS among them."""
    dtype: str


@dataclass(frozen=True)
class OpenedModel:
    """A model to draw from: its directory, its tokenizer, and how documents are drawn."""

    directory: Path
    tokenizer: Tokenizer
    rules: SamplingRules
    job: GenerateJob


def open_base(
    model: str, tokens: int, temperature: float, seed: int, world_size: int, batch: int, longest: int | None
) -> OpenedModel:
    """Open what a job draws from; only the checksum reads the weights.

    A document follows BOS, with which others' models begin one; what rewarm has trained has seen documents
    only behind the EOS of the one before. Of rows that `rewarm model extend` has appended and nobody has
    trained yet, none is drawn: the text is that of the base, with the ids of the new tokenizer.

    Raises:
        UserError: it is not a supported model directory, its tokenizer is another one than its rows are of,
            or `longest` is beyond its context.
        InfrastructureError: the hub cannot be reached.
    """
    directory = local_directory(model, field="--model")
    config = read_config(directory, field="--model")
    check_type(config.get("model_type"), field="--model", file=directory)
    tokenizer = open_tokenizer(directory)
    recorded = config.get(TOKENIZER)
    if isinstance(recorded, str) and not same(recorded, tokenizer.fingerprint):
        what = f"has rows of the tokenizer {recorded}, and the one beside them is {tokenizer.fingerprint}"
        fix = "put the tokenizer back that the model was made with"
        raise UserError(what, field="--model", value=model, fix=fix)
    context = int(config.get("max_position_embeddings", _LONGEST))
    if longest is not None and longest >= context:
        what = f"does not fit into the model's context of {context} positions with its first token"
        raise UserError(what, field="--longest", value=longest, fix=f"give at most {context - 1}")
    exported = directory / EXPORTED
    state = json.loads(exported.read_text(encoding="utf-8")) if exported.is_file() else None
    appended = BASE_ROWS in config and (state is None or bool(state.get("new_rows")))
    own = int(config[BASE_ROWS]) if appended else tokenizer.size
    allowed = [index < own and tokenizer.is_text(index) for index in range(tokenizer.size)]
    allowed[tokenizer.eos_id] = True
    begin = tokenizer.bos_id if state is None else None
    start = tokenizer.eos_id if begin is None else begin
    rules = SamplingRules(
        temperature, longest or min(_LONGEST, context - 1), start, tokenizer.eos_id, allowed
    )
    job = GenerateJob(
        model=model,
        weights=_weights_checksum(directory),
        tokenizer=tokenizer.fingerprint,
        tokens=tokens,
        temperature=temperature,
        seed=seed,
        world_size=world_size,
        batch=batch,
        longest=rules.longest,
        starts_with=tokenizer.pieces[start],
        pieces=sum(allowed),
        dtype="as stored" if torch.cuda.is_available() else "fp32",  # bf16 is slow on a CPU
    )
    return OpenedModel(directory, tokenizer, rules, job)


def _weights_checksum(directory: Path) -> str:
    found = [checksum(path) for path in (directory / "config.json", *weight_paths(directory))]
    return xxhash.xxh3_128_hexdigest("".join(found).encode())


def finished_shard(prefix: Path, job: GenerateJob) -> ShardMeta | None:
    """Return the shard at `prefix` if this job has written it; None if nothing is there.

    Raises:
        UserError: something else is there.
    """
    if not any(with_ending(prefix, ending).exists() for ending in (".json", ".bin", ".idx")):
        return None
    meta = ShardMeta.read(prefix)
    if (found := dict(meta.generated or {})) and all(found.get(k) == v for k, v in asdict(job).items()):
        return meta
    own = [name for name, value in asdict(job).items() if found.get(name) != value] if found else []
    what = f"holds a corpus of another {', '.join(own)}" if found else "holds a shard that was not generated"
    raise UserError(what, field="--out", value=str(prefix), fix="give another prefix")


def write_corpus(
    model: str,
    prefix: Path,
    tokens: int,
    ranks: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = DOCUMENTS_AT_ONCE,
    longest: int | None = None,
) -> tuple[ShardMeta | None, int]:
    """Draw a corpus on `ranks` ranks of this machine, or as one rank of this process's launcher.

    Returns the side file, which is None if other ranks are not done yet or failed, and the exit status.

    Raises:
        UserError, InfrastructureError: as `open_base` and `generate_corpus`.
    """
    world = current_world()
    launched = world.world_size > 1
    ranks = world.world_size if launched else ranks
    opened = open_base(model, tokens, temperature, seed, ranks, batch, longest)
    meta = finished_shard(prefix, opened.job)
    if meta is not None:
        return meta, 0
    if ranks == 1 or launched:
        return generate_corpus(opened, prefix, world), 0
    given = {"model": model, "out": prefix, "tokens": tokens, "temperature": temperature, "seed": seed}
    given |= {"batch": batch, **({} if longest is None else {"longest": longest})}
    words = [f"--{name}={value}" for name, value in given.items()]
    status = run_ranks(["--module", "trainer.cli.main", "data", "generate", *words], ranks)
    return (None if status else finished_shard(prefix, opened.job)), status


def generate_corpus(opened: OpenedModel, prefix: Path, world: World) -> ShardMeta | None:
    """Draw this rank's part of a corpus; the rank that ends last writes the shard and returns its side file.

    Raises:
        UserError: the prefix holds something else, another job is going on there, or next to nothing that
            the model writes is worth keeping.
        InfrastructureError: the disk is full or fails.
    """
    folder = with_ending(prefix, ".generating")
    if (done := finished_shard(prefix, opened.job)) is not None:
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a job that was killed after its last act
        return done
    with disk_errors(folder):
        _hold_job(folder, opened.job, world.rank)
        draw = _Drawing(opened, folder, world)
        share = -(-opened.job.tokens // world.world_size)
        draw.until(world.rank, share)
        append_record(folder / f"rank-{world.rank:05d}.done", {"tokens": share}, logger.warning)
        with _assembling(folder, world.world_size) as chosen:
            if not chosen:
                logger.info("has drawn its part; the rank that ends last writes the shard", extra=EVERY_RANK)
                return None
            meta = _write_shard(draw, prefix)
            shutil.rmtree(folder, ignore_errors=True)
            return meta


def _hold_job(folder: Path, job: GenerateJob, rank: int, patience_s: float = 60.0) -> None:
    """Rank 0 writes which job the folder is of; each holds its own against that."""
    path = folder / JOB
    if rank == 0 and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(job), indent=1) + "\n")
        sync_path(folder.parent)
    until = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > until:
            raise InfrastructureError(f"{path}: rank 0 has not written it in {patience_s:.0f} s")
        time.sleep(0.1)
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name, value in asdict(job).items() if found.get(name) != value]
    if differing:
        shown = ", ".join(f"{name} {found.get(name)!r} and not {asdict(job)[name]!r}" for name in differing)
        what = f"holds an unfinished corpus with {shown}"
        fix = f"finish that one, remove {folder}, or give another --out"
        raise UserError(what, field="--out", value=str(folder), fix=fix)


@contextlib.contextmanager
def _assembling(folder: Path, world_size: int) -> Iterator[bool]:
    """Tell whether this rank writes the shard: every part is drawn, and no other rank does it."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context((folder / ".lock").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):  # another rank writes it, or has written it
            yield False
            return
        yield all((folder / f"rank-{rank:05d}.done").exists() for rank in range(world_size))


@dataclass
class _Drawing:
    """Draws documents for journals; the model is loaded when the first is drawn."""

    opened: OpenedModel
    folder: Path
    world: World
    said: float = field(default_factory=time.monotonic)
    _hf: Any = None

    def journal(self, rank: int) -> Journal:
        return Journal(self.folder, rank, token_dtype(self.opened.tokenizer.size))

    def until(self, rank: int, tokens: int, seen: set[bytes] | None = None) -> Journal:
        """Draw for a rank's journal until it holds so many tokens; none of `seen` is kept again."""
        journal = self.journal(rank)
        seen = set() if seen is None else seen
        seen |= {digest_of(one) for one in journal.documents()}
        began, before = time.monotonic(), journal.tokens
        while journal.tokens < tokens:
            rules, job = self.opened.rules, self.opened.job
            seed = xxhash.xxh3_64_intdigest(f"{job.seed} {rank} {journal.batches}".encode()) >> 1
            kept, counts = keep_documents(self._sample(rules, job.batch, seed), rules, seen)
            journal.append(kept, counts)
            self._hold_yield(journal)
            if time.monotonic() - self.said > _SAID_EVERY_S:
                self.said = time.monotonic()
                speed = (journal.tokens - before) / (self.said - began)
                logger.info(f"{journal.tokens:,} of this rank's {tokens:,} tokens, {speed:,.0f} tokens/s")
        return journal

    def _sample(self, rules: SamplingRules, count: int, seed: int) -> list[list[int]]:
        if self._hf is None:
            gpu = torch.cuda.is_available()
            dtype = "auto" if gpu else torch.float32
            causal = load_model(str(self.opened.directory), self.opened.tokenizer.size, dtype)
            place = self.world.local_rank % torch.cuda.device_count() if gpu else 0
            self._hf = causal.hf.to(torch.device("cuda", place) if gpu else "cpu")
        try:
            return sample_documents(self._hf, rules, count, seed)
        except torch.OutOfMemoryError as error:
            what = f"documents of up to {rules.longest} tokens do not fit into the memory of the GPU"
            fix = "give a smaller --batch; the text is another one then"
            raise UserError(what, field="--batch", value=count, fix=fix) from error

    def _hold_yield(self, journal: Journal) -> None:
        counts, kept = journal.counts, len(journal.lengths)
        if counts.drawn >= _ENOUGH and kept < _FEWEST * counts.drawn:
            what = (
                f"writes next to nothing that can be kept: of {counts.drawn:,} documents {counts.empty:,} "
                f"are empty, {counts.loops:,} are loops and {counts.repeated:,} are copies of others"
            )
            fix = "give a base that is trained, or --temperature 1"
            raise UserError(what, field="--model", value=self.opened.job.model, fix=fix)


def _write_shard(draw: _Drawing, prefix: Path) -> ShardMeta:
    """Write the documents of all ranks, each once, in the order of the ranks.

    If copies leave too few tokens, the rest is drawn as a further rank's.
    """
    opened, job = draw.opened, draw.opened.job
    ranks = [draw.journal(rank) for rank in range(job.world_size)]
    seen: set[bytes] = set()
    once, copies = [], 0
    for journal in ranks:
        fresh = [_new(digest_of(one), seen) for one in journal.documents()]
        once.append(fresh)
        copies += fresh.count(False)
    held = sum(
        sum(n for n, new in zip(journal.lengths, fresh, strict=True) if new)
        for journal, fresh in zip(ranks, once, strict=True)
    )
    if held < job.tokens:
        further = draw.until(job.world_size, job.tokens - held, seen)
        ranks.append(further)
        once.append([True] * len(further.lengths))
    counts = DrawnCounts(repeated=copies)
    for journal in ranks:
        counts.add(journal.counts)
    made = {**asdict(job), "documents": asdict(counts)}
    decode = decoder_of(opened.tokenizer)
    identity = xxhash.xxh3_64_hexdigest(json.dumps(asdict(job), sort_keys=True).encode())
    writer = ShardWriter(
        prefix, vocab_size=opened.tokenizer.size, tokenizer=job.tokenizer, eos_id=opened.rules.eos_id,
        job=f"generated-{identity}", generated=made,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(writer.discard)
        for journal, fresh in zip(ranks, once, strict=True):
            for document, new in zip(journal.documents(), fresh, strict=True):
                if new:
                    writer.add_document(document, len(decode(document[:-1].tolist()).encode()))
        stack.pop_all()
        return writer.close()


def _new(digest: bytes, seen: set[bytes]) -> bool:
    """Tell whether a digest is not in `seen` yet, and add it."""
    size = len(seen)
    seen.add(digest)
    return len(seen) > size
