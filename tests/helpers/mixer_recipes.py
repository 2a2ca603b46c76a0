"""Small recipes for the mixer's tests."""

from trainer.mixer.description import MixtureDescription, PastPhase, SourceDescription
from trainer.mixer.mixture import Mixture, SourceSize
from trainer.recipe import load


def recipe_of(
    sources,
    mixtures,
    *,
    samples,
    seq_len=16,
    global_batch_size=1,
    seed=0,
    options=None,
    lengths=None,
    **fields,
):
    """A recipe with sources {name: role} and a mixture for each phase of so many samples.

    `lengths` are the seq_len of the phases, if they have other ones; samples are counted in `seq_len` still.

    A mixture is written as in a recipe, without its braces: `zh: 3/4, en: 1/4`; a list of them is segments.
    `options` are further fields of a source.
    """
    options = options or {}
    lines = [
        "name: test",
        "model: {base: none, tokenizer: none}",
        "deepspeed: none",
        f"seq_len: {seq_len}",
        f"global_batch_size: {global_batch_size}",
        f"seed: {seed}",
        "checkpoint: {every_tokens: 1}",
        *(f"{name}: {value}" for name, value in {"validation": "{every_tokens: 1}", **fields}.items()),
        "sources:",
    ]
    for name, role in sources.items():
        lines.append(
            f"  {name}: {{path: data/{name}, role: {role}, {options.get(name, 'max_epochs: null')}}}"
        )
    lines.append("phases:")
    for number, (mixture, length) in enumerate(zip(mixtures, samples, strict=True)):
        segments = [mixture] if isinstance(mixture, str) else mixture
        lines += [
            f"  - name: phase{number}",
            f"    tokens: {length * seq_len}",
            "    schedule: {kind: constant, max_lr: 1e-3}",
            f"    mixture: [{', '.join(f'{{{segment}}}' for segment in segments)}]",
            *([f"    seq_len: {lengths[number]}"] if lengths else []),
        ]
    return load.parse_recipe("\n".join(lines))


def sizes_of(sizes, seq_len=16):
    """Sources of so many samples."""
    return {
        name: SourceSize(samples, f"hash-of-{name}", samples * seq_len + 1) for name, samples in sizes.items()
    }


def mixture_of(sizes, mixtures, *, samples, seq_len=16, roles=None, past=(), **others):
    """A mixture over sources {name: samples}; roles are `new` unless given."""
    roles = dict.fromkeys(sizes, "new") | (roles or {})
    recipe = recipe_of(roles, mixtures, samples=samples, seq_len=seq_len, **others)
    return Mixture.from_recipe(recipe, sizes_of(sizes, seq_len), past)


def begun(samples, taken_before=None, sources="ab"):
    """A phase that has consumed so many samples, after others that had used `taken_before` of each source."""
    known = {name: SourceDescription(f"hash-of-{name}", 1, 0, "shuffled") for name in sources}
    return PastPhase(samples, MixtureDescription(1, 0, 16, (), known, taken_before or {}))
