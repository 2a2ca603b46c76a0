"""Sources on disk: read as the mixture names them, refused by name when a run began with others."""

import numpy as np
import pytest

from tests.helpers.mixer_recipes import recipe_of
from tokenization.errors import UserErrors
from tokenization.shards.writer import ShardWriter
from trainer.mixer.loader import Loader
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.plan.data import open_sources

SEQ_LEN = 16
SHARES = "zh: 3/4, en: 1/4"


def write_shard(path, *, documents=30, tokenizer="tok", seed=0):
    rng = np.random.default_rng(seed)
    with ShardWriter(path, vocab_size=1000, tokenizer=tokenizer, eos_id=2) as writer:
        for _ in range(documents):
            writer.add_document(rng.integers(3, 1000, rng.integers(5, 40)))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shard("data/zh", seed=1)
    write_shard("data/en", seed=2)
    return recipe_of({"zh": "new", "en": "replay"}, [SHARES], samples=[24], seq_len=SEQ_LEN)


def mixture_over(recipe, stores):
    sizes = {name: SourceSize.of(store, SEQ_LEN) for name, store in stores.items()}
    return Mixture.from_recipe(recipe, sizes)


def test_a_rank_reads_the_stream_of_tokens_and_its_documents(recipe):
    stores = open_sources(recipe)
    mixture = mixture_over(recipe, stores)
    loader = Loader(
        mixture,
        stores,
        micro_batch_size=8,
        rank=0,
        world_size=1,
        document_mask="causal_per_document",
        eos_id=stores["zh"].eos_id,
    )
    [batch] = loader.step(0, 8, 8)
    named = mixture.batch(0, 8, 8)
    for row, (source, index) in enumerate(zip(named.source, named.index, strict=True)):
        store = stores[mixture.names[source]]
        begin = index * SEQ_LEN
        assert batch.input_ids[row].tolist() == store.read(begin, SEQ_LEN).tolist()
        assert batch.targets[row].tolist() == store.read(begin + 1, SEQ_LEN).tolist()
        starts = set((np.flatnonzero(batch.input_ids[row][:-1] == store.eos_id) + 1).tolist())
        zeros = set(np.flatnonzero(batch.positions[row] == 0).tolist())
        assert zeros == starts | {0}
    loader.close()


def test_what_the_run_began_with_is_accepted(recipe):
    known = {name: store.fingerprint for name, store in open_sources(recipe).items()}
    assert list(open_sources(recipe, known)) == ["zh", "en"]


def test_a_deleted_source_is_named(recipe, tmp_path):
    for file in (tmp_path / "data").glob("en.*"):
        file.unlink()
    with pytest.raises(UserErrors, match=r"^sources\.en\.path: data/en: has no token shards"):
        open_sources(recipe)


def test_a_truncated_source_is_named(recipe, tmp_path):
    path = tmp_path / "data" / "zh.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserErrors, match=r"^sources\.zh\.path: data/zh\.bin: "):
        open_sources(recipe)


def test_an_altered_source_is_named_with_the_way_on(recipe):
    known = {name: store.fingerprint for name, store in open_sources(recipe).items()}
    write_shard("data/en", seed=3)
    open_sources(recipe)  # a run that begins now takes it as it is
    with pytest.raises(UserErrors) as caught:
        open_sources(recipe, known)
    [problem] = caught.value.problems
    assert str(problem).startswith("sources.en.path: 'data/en' has changed since the run began")
    assert str(problem).endswith("or declare the new ones as another source in a new phase")


def test_two_tokenizers_do_not_mix(recipe):
    write_shard("data/en", tokenizer="another")
    with pytest.raises(
        UserErrors, match=r"sources\.en\.path: 'data/en' was made with tokenizer another, but data/zh"
    ):
        open_sources(recipe)


def test_everything_missing_is_told_at_once(recipe, tmp_path):
    for file in (tmp_path / "data").glob("*"):
        file.unlink()
    with pytest.raises(UserErrors) as caught:
        open_sources(recipe)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("how", ["the path", "a copy", "a part"])
def test_one_text_under_two_names_is_refused(recipe, tmp_path, how):
    """`max_epochs` counts a source by its name."""
    if how == "a copy":
        write_shard("data/en", seed=1)
    elif how == "a part":
        write_shard("data/parts-00000-of-00002", seed=1)
        write_shard("data/parts-00001-of-00002", seed=3)
    other = {"the path": "data/zh", "a copy": "data/en", "a part": "data/parts"}[how]
    sources = {**recipe.sources, "en": recipe.sources["en"].model_copy(update={"path": other})}
    with pytest.raises(
        UserErrors, match=rf"^sources\.en\.path: '{other}' holds the same tokens as sources\.zh, "
    ):
        open_sources(recipe.model_copy(update={"sources": sources}))


def test_two_empty_parts_are_not_one_text(recipe):
    for name in ("zh", "en"):
        for part, documents in ((0, 0), (1, 9)):
            write_shard(
                f"data/{name}2-0000{part}-of-00002", documents=documents, seed=len(name) + ord(name[0])
            )
    sources = {
        name: source.model_copy(update={"path": f"data/{name}2"}) for name, source in recipe.sources.items()
    }
    assert list(open_sources(recipe.model_copy(update={"sources": sources}))) == ["zh", "en"]
