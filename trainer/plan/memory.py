"""Estimate the memory that a rank needs, from the model's config and before anything is allocated.

Everything here is arithmetic. N is the number of parameters, W that of ranks, p the bytes of a number of
`model.dtype`, T the tokens of a micro batch on a rank. Model states follow Rajbhandari et al. 2020 (ZeRO,
arXiv 1910.02054, section 3), with gradients summed in fp32; activations follow Korthikanti et al. 2022 (arXiv
2205.05198, section 4), counted again for LLaMA's layer under memory-efficient attention. `benchmarks/plan.py`
holds both against traces and measured peaks (docs/plan.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.engine.ds_config import SUB_GROUP, WHOLE_BUCKET
from trainer.model.size import head_dim, parameters

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number."""

FUSED_LOGITS = {"cpu": 2**24, "cuda": 2**26}
"""Logits that the fused loss holds at a time, by the kind of device."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on."""

    hidden: int
    layers: int
    inner: int
    heads: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together; that of the values, too."""
    vocab: int
    """Rows of the embedding, the appended ones and padding included."""
    parameters: int
    gated: bool
    """Whether a layer is LLaMA's: RMSNorm in fp32 and a gated MLP; else it is GPT-NeoX's."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the sizes from a Hugging Face config."""
        heads = int(config["num_attention_heads"])
        groups = int(config.get("num_key_value_heads") or heads)
        return cls(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            inner=int(config["intermediate_size"]),
            heads=heads,
            queries=heads * head_dim(config),
            keys=groups * head_dim(config),
            vocab=int(config["vocab_size"]),
            parameters=parameters(config),
            gated=config["model_type"] != "gpt_neox",
        )

    @property
    def matrix(self) -> int:
        """Parameters of an embedding."""
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of a layer's matrices."""
        attention = self.hidden * 2 * (self.queries + self.keys)
        return attention + (3 if self.gated else 2) * self.hidden * self.inner


@dataclass(frozen=True)
class MemorySettings:
    """All that memory depends on beside the model."""

    stage: int
    """ZeRO stage."""
    world_size: int
    seq_len: int
    """Tokens of a sample on a rank: a part of the sample under sequence parallelism."""
    dtype: str = "bf16"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    recompute: str = "none"
    """`none`, `full`, `every_n` or `offload`."""
    every_n: int = 1
    """With `every_n`: one layer in so many is computed again."""
    document_mask: bool = False
    attention: str = "sdpa"
    device: str = "cuda"
    accumulation: int = 2
    """Micro batches per step; with more than one, gradients stand while activations are at their most."""
    state_width: int = 4
    """Bytes of each of AdamW's moments: 4 for fp32, 2 for bf16."""
    average: bool = False
    """Whether averaged weights are kept, 4 bytes each."""
    bucket: int = 2**20
    """`reduce_bucket_size`, in gradients."""
    live: int = 10**9
    """Parameters that ZeRO-3 keeps gathered at most: `stage3_max_live_parameters`, DeepSpeed's default."""
    sub_group: int = SUB_GROUP
    """Parameters of a rank that ZeRO-3 steps at a time: `sub_group_size`."""
    overlap: bool = False
    """Whether a second bucket is filled while the first is reduced."""
    node_copy: int = 0
    """ZeRO++: ranks that hold a second copy of the weights among them (`zero_hpz_partition_size`)."""

    @property
    def width(self) -> int:
        """Bytes of a number of the forward and backward pass."""
        return WIDTHS[self.dtype]


@dataclass(frozen=True)
class LossMemory:
    """Bytes of the fused loss, which makes its gradients while a chunk of logits is there."""

    embedding: int
    """The gradient of the output embedding: in fp32, and beside it in 16 bits where the model has them."""
    largest_chunk: int
    """A chunk of logits in p, its softmax in fp32, and the slopes in p; in fp32 one buffer is all three."""
    logits_per_sample: int
    """The same of all logits of one sample."""
    per_sample: int
    """The gradient of one sample's last hidden state."""

    def total(self, micro_batch_size: int) -> int:
        """Return the bytes of a micro batch's loss at their peak."""
        chunk = min(self.largest_chunk, micro_batch_size * self.logits_per_sample)
        return self.embedding + chunk + micro_batch_size * self.per_sample


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's device and host, part by part; see `peak` for what they need together."""

    weights: int
    gradients: int
    optimizer: int
    """fp32 master weights and both moments."""
    host: int
    """Bytes that offload moves to the host."""
    per_sample: int
    """Activations that the forward pass keeps of one sample."""
    layer_work: int
    """Of one sample: what a layer's backward pass needs beyond what is kept, its recomputation included."""
    loss: LossMemory
    buffers: int
    """Buckets of communication, and gathered weights at ZeRO-3."""
    ending: int
    """What the end of the backward pass and the step need when activations are gone."""

    @property
    def states(self) -> int:
        """Bytes on the device without activations: what stays from step to step, and buffers."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    def activations(self, micro_batch_size: int) -> int:
        """Return the bytes of a forward and backward pass at their peak, the loss included."""
        loss = self.loss.total(micro_batch_size)
        return micro_batch_size * self.per_sample + max(loss, micro_batch_size * self.layer_work)

    def peak(self, micro_batch_size: int) -> int:
        """Return the most bytes that the device holds during a step."""
        return self.states + max(self.activations(micro_batch_size), self.ending)

    def largest_micro_batch(self, available: int) -> int:
        """Return how many samples fit into `available` bytes at a time; 0 if none does."""
        low, high = 0, 1
        while self.peak(high) <= available:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= available else (low, middle)
        return low


def estimate(shape: Shape, settings: MemorySettings) -> Memory:
    """Estimate a rank's memory at its peak within a step."""
    count, ranks, stage = shape.parameters, settings.world_size, settings.stage
    weights = count * settings.width // (ranks if stage >= 3 else 1)
    if settings.node_copy:
        weights += count * settings.width // min(settings.node_copy, ranks)
    gradients = 4 * count // (ranks if stage >= 2 else 1)
    optimizer = optimizer_bytes(count, settings)
    host, ending = 0, _ending(shape, settings)
    buffers = 4 * settings.bucket * (2 if settings.overlap else 1) if stage else 0
    if stage >= 3 and ranks > 1:
        buffers += settings.width * min(count, settings.live)
    if settings.offload_optimizer:
        # Once more the sums, in the form that the optimizer takes.
        host, optimizer, ending = optimizer + 4 * count // ranks, 0, 0
        if (
            stage >= 3
        ):  # below, the sums stay on the device until the step, and the new weights are on the host
            host, gradients = host + gradients, 0
        else:
            host += count * settings.width // ranks
    if settings.offload_parameters:
        host, weights = host + weights, 0
    kept, work = sample_bytes(shape, settings)
    loss = loss_bytes(shape, settings)
    return Memory(weights, gradients, optimizer, host, kept, work, loss, buffers, ending)


def optimizer_bytes(count: int, settings: MemorySettings) -> int:
    """Return a rank's bytes of AdamW: (4 + 2 · 4) N/W. At ZeRO-0, fp32 weights are their own masters.

    Averaged weights lie beside the masters, and are as large."""
    master = (4 if settings.stage else 0) + (4 if settings.average else 0)
    return count * (master + 2 * settings.state_width) // (settings.world_size if settings.stage else 1)


def _ending(shape: Shape, settings: MemorySettings) -> int:
    """Return what the end of the backward pass and the step need beyond the states.

    ZeRO-0 copies gradients into a buffer to add them; ZeRO-1 sums its own part of them beside the whole;
    ZeRO-2 still has its part of the 16-bit gradients of matrices that are larger than a bucket; ZeRO-3 copies
    the gradients of a sub-group for its step; in fp32, ZeRO-1 and 2 flatten their part for theirs."""
    share = 4 * shape.parameters // settings.world_size
    if settings.stage == 0:
        return 4 * min(shape.parameters, WHOLE_BUCKET)
    if settings.stage == 3:
        return min(share, 4 * settings.sub_group)
    if settings.stage == 1 or settings.dtype == "fp32":
        return share
    return settings.width * _beyond(shape, settings.bucket) // settings.world_size


def _beyond(shape: Shape, bucket: int) -> int:
    """Return the parameters of all matrices that are larger than a bucket."""
    projections = 2 * shape.layers * shape.hidden * (shape.queries + shape.keys)
    kinds = (
        (shape.matrix, shape.parameters - shape.layers * shape.layer),  # the embeddings
        (shape.hidden * shape.inner, shape.layers * shape.layer - projections),
        (shape.hidden * shape.queries, projections),
    )
    return sum(count for size, count in kinds if size > bucket)


def layer_bytes(shape: Shape, settings: MemorySettings) -> int:
    """Return the bytes per token that a layer keeps for its backward pass, when nothing is computed again.

    LLaMA: each RMSNorm keeps its input in fp32, the normalized state and the product with its weight: 2 (4 +
    2p) h. Attention keeps queries, keys, values and its output, p (2 q + 2 k), and 4 bytes per head for the
    softmax. The MLP keeps gate, its activation, up and their product: 4 p i. GPT-NeoX: the input, two
    normalized states, and 3 p h for the joined queries, keys and values, of which the values are a view; the
    MLP keeps its state before and after the activation, 2 p i. With `eager` attention the
    scores are kept, too, and a document mask adds its bias and a copy of the attention's output."""
    p = settings.width
    attention = p * 2 * (shape.queries + shape.keys) + 4 * shape.heads
    if settings.attention == "eager":
        attention += shape.heads * settings.seq_len * (4 + p)
    if settings.document_mask and (settings.dtype == "fp32" or settings.attention in ("eager", "sdpa")):
        attention += p * (settings.seq_len + shape.queries)
    if shape.gated:
        return 2 * shape.hidden * (4 + 2 * p) + attention + 4 * p * shape.inner
    return 6 * p * shape.hidden + attention + 2 * p * shape.inner


def sample_bytes(shape: Shape, settings: MemorySettings) -> tuple[int, int]:
    """Return the bytes of one sample: what the forward pass keeps, and what a layer's backward pass adds.

    A layer that is computed again keeps its input alone, p h per token, or nothing on the device with
    `offload`; its backward pass holds all of that one layer, as `layer_bytes` counts it."""
    p, layer = settings.width, layer_bytes(shape, settings)
    again = recomputed_layers(shape.layers, settings)
    stub = 0 if settings.recompute == "offload" else p * shape.hidden
    last = shape.hidden * (4 + 2 * p)  # the norm before the output embedding
    kept = (shape.layers - again) * layer + again * stub + last
    work = p * (2 * shape.inner + 2 * shape.hidden) + (layer if again else 0)
    return settings.seq_len * kept, settings.seq_len * work


def recomputed_layers(layers: int, settings: MemorySettings) -> int:
    """Return how many layers are computed again in the backward pass: the first of every `every_n`."""
    if settings.recompute == "none":
        return 0
    return -(-layers // (settings.every_n if settings.recompute == "every_n" else 1))


def loss_bytes(shape: Shape, settings: MemorySettings) -> LossMemory:
    """Return what the loss needs over a vocabulary that is extended already."""
    p = settings.width
    logit = 4 if p == 4 else 4 + 2 * p
    return LossMemory(
        embedding=shape.matrix * (4 if p == 4 else 4 + p),
        largest_chunk=FUSED_LOGITS[settings.device] * logit,
        logits_per_sample=settings.seq_len * shape.vocab * logit,
        per_sample=settings.seq_len * p * shape.hidden,
    )


def bare_peak(shape: Shape, settings: MemorySettings, micro_batch_size: int) -> int:
    """Return the peak of one forward and backward pass without an engine: weights and gradients in p.

    A gradient grows as the backward pass goes down. So the peak is at its beginning, when all activations are
    there, or in the first layer, when all gradients but this layer's are."""
    p, kept = settings.width, sample_bytes(shape, settings)
    memory = Memory(0, 0, 0, 0, *kept, loss_bytes(shape, settings), 0, 0)
    beginning = memory.activations(micro_batch_size) + (0 if p == 4 else p * shape.matrix)
    one_layer = settings.seq_len * (layer_bytes(shape, settings) + p * (2 * shape.inner + 3 * shape.hidden))
    missing = shape.layer - shape.hidden * shape.inner + shape.matrix
    end = p * (shape.parameters - missing) + micro_batch_size * one_layer
    return p * shape.parameters + max(beginning, end, p * shape.parameters)
