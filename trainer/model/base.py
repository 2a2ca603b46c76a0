"""Hold a base's weight files against its config.json: the same names, the same shapes, one matrix if tied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenization.errors import UserError, UserErrors
from trainer.model.architecture import BUFFERS, EMBEDDINGS, file_name
from trainer.model.weights import is_plain, weight_shapes
from trainer.storage.weight_files import INDEX_FILE, SINGLE_FILE, read_shapes

if TYPE_CHECKING:  # a plan checks a plain base without torch, whose import takes seconds
    import torch

_MOST_NAMES = 3


@dataclass(frozen=True)
class Expected:
    """The weights that a config asks for."""

    shapes: dict[str, tuple[int, ...]]
    """By their names in files; without the output embedding if it is tied."""
    tied: bool
    prefix: str
    """What the names begin with that some models' files leave out."""


def expected_weights(config: Mapping[str, Any], where: str = "model.base", value: Any = None) -> Expected:
    """Build the model that a config describes, without memory; return the weights that it has.

    Raises:
        UserError: it describes none: an unknown activation or RoPE type, a field of a wrong type, ….
    """
    if is_plain(config):
        return Expected(weight_shapes(config), bool(config.get("tie_word_embeddings")), "model.")
    import torch

    from trainer.model.build import make_empty

    try:
        with torch.device("meta"):
            hf = make_empty(config, {"dtype": torch.bfloat16})
    except Exception as error:  # a config can be wrong in any way, and transformers raises what it likes
        raise _cannot_be_built(config, error, where, value) from error
    shapes = {
        file_name(config["model_type"], name): tuple(parameter.shape)
        for name, parameter in hf.named_parameters()
    }
    return Expected(shapes, bool(hf.config.tie_word_embeddings), f"{hf.base_model_prefix}.")


def _cannot_be_built(config: Mapping[str, Any], error: Exception, where: str, value: Any) -> UserError:
    """Say in a line why transformers cannot build the model, and in which field if that can be told."""
    reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
    missing = error.args[0] if isinstance(error, KeyError) and error.args else None
    for name, held in _leaves(config):
        if missing is not None and held == missing:
            what = "is not known to transformers"
            return UserError(what, field=f"{where}.{name}", value=held, fix="correct it in config.json")
    what = f"describes a model that transformers cannot build ({reason})"
    return UserError(what, field=where, value=value, fix="correct its config.json")


def _leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, held in config.items():
        if isinstance(held, Mapping):
            yield from _leaves(held, f"{above}{name}.")
        else:
            yield f"{above}{name}", held


def check_weights(directory: Path, config: Mapping[str, Any], expected: Expected) -> None:
    """Check names and shapes of a base's safetensors files, whose headers alone are read.

    Weights that config.json does not know would be dropped, silently at ZeRO-3. Of a tied model's files a
    second, different matrix would be trained at some ZeRO stages and dropped at others. A directory whose
    weights are in another format is not checked.

    Raises:
        UserErrors: all that does not fit.
    """
    if not any((directory / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return
    held = read_shapes(directory)
    names = {_expected_name(name, config, expected): name for name in held}
    found = {name: held[inner] for name, inner in names.items()}
    problems = list(_differences(found, expected, config["model_type"], str(directory)))
    if not problems and expected.tied:
        problems += _two_matrices(directory, names, config["model_type"])
    if problems:
        raise UserErrors(problems)


def _expected_name(name: str, config: Mapping[str, Any], expected: Expected) -> str:
    """Return the name that transformers loads a stored tensor under."""
    name = file_name(config["model_type"], name)
    with_prefix = expected.prefix + name
    return with_prefix if name not in expected.shapes and with_prefix in expected.shapes else name


def _differences(
    found: Mapping[str, tuple[int, ...]], expected: Expected, model_type: str, where: str
) -> Iterator[UserError]:
    output = EMBEDDINGS[model_type][1]
    unknown = [
        name
        for name in found
        if name not in expected.shapes
        and BUFFERS.search(name) is None
        and not (expected.tied and name == output)
    ]
    missing = [name for name in expected.shapes if name not in found]
    if missing:
        what = f"lacks {len(missing)} weights that its config.json asks for: {_shown(missing)}"
        yield UserError(what, field="model.base", value=where, fix="copy the model again")
    if unknown:
        what = f"holds {len(unknown)} weights that its config.json does not know: {_shown(unknown)}"
        fix = "restore the config.json that they were saved with; they would be dropped"
        yield UserError(what, field="model.base", value=where, fix=fix)
    other = [name for name, shape in expected.shapes.items() if found.get(name, shape) != shape]
    if other:
        name = other[0]
        what = (
            f"holds {len(other)} weights of other shapes than its config.json asks for: {name} is "
            f"{list(found[name])} and not {list(expected.shapes[name])}"
        )
        fix = "restore the config.json that they were saved with"
        yield UserError(what, field="model.base", value=where, fix=fix)


def _two_matrices(directory: Path, names: Mapping[str, str], model_type: str) -> Iterator[UserError]:
    """Find an output embedding that is not the input embedding, in the files of a model that ties them."""
    first, second = EMBEDDINGS[model_type]
    if second not in names:
        return
    from trainer.storage.safetensors import WeightsReader

    with WeightsReader(directory) as reader:
        if _same(reader[names[first]], reader[names[second]]):
            return
    what = f"ties its embeddings (tie_word_embeddings) and holds {first} and {second}, which differ"
    fix = f"set tie_word_embeddings to false to train both, or remove {second} from the files"
    yield UserError(what, field="model.base", value=str(directory), fix=fix)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two matrices hold the same numbers, a part at a time; NaN is itself here."""
    import torch

    if one.shape != other.shape:
        return False
    parts = zip(one.split(4096), other.split(4096), strict=True)
    return all(torch.equal(a.float().view(torch.int32), b.float().view(torch.int32)) for a, b in parts)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
