"""Build the model: existing or random weights, the same ones at every ZeRO stage and world size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from tokenization.errors import UserError
from trainer.model import documents
from trainer.model.architecture import BUFFERS, EMBEDDINGS, has_fast_documents
from trainer.model.cross_entropy import cross_entropy
from trainer.model.layers import decoder_layers, prepare_layers
from trainer.model.liger import liger_cross_entropy
from trainer.model.loss import CausalLM
from trainer.model.trainable import parameter_groups
from trainer.recipe.schema import Recipe
from trainer.storage.safetensors import DTYPES

OUTPUTS = frozenset({"lm_head.weight", *(output for _, output in EMBEDDINGS.values())})

transformers.utils.logging.disable_progress_bar()  # one bar per rank and load is only noise


def build_model(
    config: Mapping[str, Any],
    recipe: Recipe,
    vocab_size: int,
    *,
    weights: bool = True,
    initialize: Callable[[Any], None] = lambda hf: hf.initialize_weights(),
    wrap: Callable[..., CausalLM] = CausalLM,
) -> CausalLM:
    """Build the recipe's model for a tokenizer of `vocab_size` pieces, on the CPU, in `model.dtype`.

    DeepSpeed derives its fp32 master weights from these. Under ZeRO-3 call it inside
    `engine.sharded_loading`: then parameters are sharded as they are made, and rank 0 alone reads the
    base, mapped from its files, a tensor at a time.

    Args:
        config: the model's config, as `architecture.resolve_config` returns it.
        recipe: it names the base, the dtype, the attention and the seed.
        vocab_size: pieces of the tokenizer.
        weights: False if a checkpoint is loaded next; the values are arbitrary then.
        initialize: draws a model's random weights by its architecture's rule.
        wrap: `CausalLM`, or what takes the same arguments.

    Raises:
        UserError: the base's weights cannot be read, or some are missing.
        InfrastructureError: the hub cannot be reached.
    """
    how: dict[str, Any] = {
        "dtype": DTYPES[recipe.model.dtype],
        "attn_implementation": attention_of(recipe, config),
    }
    if recipe.model.base is not None and weights:
        hf = _pretrained(recipe.model.base, {**how, "config": _hf_config(config)})
    else:
        hf = make_empty(config, how)
    # torch gives the row of the padding token no gradient. A packed stream has no padding, and where the
    # padding token is EOS, as in most bases of LLaMA, its row is read at the end of every document.
    hf.get_input_embeddings().padding_idx = None
    if weights and recipe.model.base is None:
        _draw(hf, recipe.seed, initialize)
    hf.config.use_cache = False
    loss = liger_cross_entropy if recipe.model.loss == "liger" else cross_entropy
    causal = wrap(hf.train(), vocab_size, recipe.optimizer.z_loss, loss)
    prepare_layers(hf, recipe.model)
    if recipe.model.compile:
        causal.gathered_whole = list({type(layer) for layer in decoder_layers(hf)})
    return causal


def attention_of(recipe: Recipe, config: Mapping[str, Any]) -> str:
    """Return the attention implementation that `model.attention` stands for on this machine."""
    if recipe.model.attention != "auto":
        return recipe.model.attention
    if not torch.cuda.is_available() or recipe.model.dtype == "fp32":
        return "sdpa"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    whole = recipe.sequence_parallel_size == 1
    return documents.ATTENTION if whole and has_fast_documents(config) and documents.available() else "sdpa"


def check_trained(config: Mapping[str, Any], recipe: Recipe, vocab_size: int) -> list[UserError]:
    """Find `train` patterns and `lr_scale` of any phase that match nothing; uses no memory and no weights."""
    with torch.device("meta"):
        model = CausalLM(make_empty(config, {"dtype": torch.bfloat16}), vocab_size)
    problems = []
    for phase in recipe.phases:
        try:
            parameter_groups(model, phase, recipe.optimizer.weight_decay)
        except UserError as problem:
            problems.append(problem)
    return problems


def load_model(model: str, vocab_size: int, dtype: torch.dtype | str = torch.float32) -> CausalLM:
    """Load an existing model in `dtype`, for scoring or sampling; `auto` is that of its files.

    Raises:
        UserError: it cannot be loaded.
    """
    hf = _pretrained(model, {"dtype": dtype})
    hf.config.use_cache = False
    return CausalLM(hf.eval(), vocab_size)


def _pretrained(base: str, how: dict[str, Any]) -> Any:
    """Load the base's weights; one that is missing or has another shape is an error, not drawn at random."""
    try:
        # Neither code nor pickles of the model's own are ever run.
        own = {"trust_remote_code": False, "use_safetensors": True}
        hf, report = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True, **own, **how)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot be loaded ({reason})", field="model.base", value=base) from error
    if missing := sorted(report["missing_keys"]):
        what = f"lacks {len(missing)} weights, among them {missing[0]}"
        raise UserError(what, field="model.base", value=base, fix="copy the model again")
    tied = hf.get_output_embeddings().weight is hf.get_input_embeddings().weight
    unknown = [name for name in report["unexpected_keys"] if not _needless(name, tied)]
    if unknown:
        what = f"holds {len(unknown)} weights that its config.json does not know, among them {min(unknown)}"
        fix = "restore the config.json that they were saved with; they would be dropped"
        raise UserError(what, field="model.base", value=base, fix=fix)
    return hf


def _needless(name: str, tied: bool) -> bool:
    """Tell whether a stored tensor is not a weight: a buffer, or a second name of a tied matrix."""
    return BUFFERS.search(name) is not None or (tied and name in OUTPUTS)


def _hf_config(config: Mapping[str, Any]) -> Any:
    """Make transformers' config object; it may change its fields, so it is given a copy."""
    return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config)))


def make_empty(config: Mapping[str, Any], how: dict[str, Any]) -> Any:
    """Make transformers' model of a config; its weights have arbitrary values."""
    with no_init_weights():
        hf = AutoModelForCausalLM.from_config(_hf_config(config), **how)
    hf.tie_weights()
    return hf


def _draw(hf: Any, seed: int, initialize: Callable[[Any], None]) -> None:
    """Draw random weights by the architecture's own rule, from `seed` alone."""
    for module in hf.modules():
        module._is_hf_initialized = False
    with _SeededNormal(seed):
        initialize(hf)


class _SeededNormal(TorchFunctionMode):
    """`torch.nn.init.normal_` from a generator of our own, in fp32 on the CPU: no other draw, device,
    dtype or ZeRO stage changes the values."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call = self._normal if func is torch.nn.init.normal_ else func
        return call(*args, **(kwargs or {}))

    def _normal(self, tensor: Tensor, mean: float, std: float, generator: None) -> Tensor:
        return tensor.copy_(torch.empty(tensor.shape).normal_(mean, std, generator=self.generator))
