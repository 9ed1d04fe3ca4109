"""reformer-pytorch and transformers, with the buckets, rounds and rotations of our layer."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from benchmarks.peers import Pair
from zoo import MultiHeadAttention
from zoo.attention.reformer import ReformerConfig

BUCKET, HASHES, SEED = 64, 4, 0
SETTING = f"bucket size {BUCKET}, {HASHES} hashes"
WHY = "their first chunk of each round looks back, around the end, at the last chunk of the round before it"


def pair(*, d_model: int, n_heads: int, length: int) -> list[Pair]:
    if length % (2 * BUCKET):
        raise NotImplementedError(f"both packages take whole pairs of buckets of {BUCKET} positions")
    return [
        lucidrains(d_model, n_heads, length),
        hugging_face(d_model, n_heads, length),
    ]


def sublayer(d_model: int, n_heads: int, length: int) -> MultiHeadAttention:
    config = ReformerConfig(n_hashes=HASHES, bucket_size=BUCKET)
    return MultiHeadAttention(config, d_model=d_model, n_heads=n_heads, max_len=length)


def tolerance(length: int) -> float:
    """Chunks that look around the end are BUCKET / length of all; other rotations differ by 0.5 and more."""
    return 0.75 * math.sqrt(BUCKET / length)


class Seeded(nn.Module):
    """A layer that draws its rotations in each call; a fixed seed makes them the same in every call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(SEED)
        y: Tensor = self.layer(x)
        return y


def lucidrains(d_model: int, n_heads: int, length: int) -> Pair:
    """Its logits are divided by √D, so it gets our queries times √D; the hash does not depend on their norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from reformer_pytorch import LSHSelfAttention

    ours = sublayer(d_model, n_heads, length)
    theirs = LSHSelfAttention(d_model, heads=n_heads, bucket_size=BUCKET, n_hashes=HASHES)
    d_head, half = d_model // n_heads, length // BUCKET // 2
    with torch.no_grad():
        queries, values = ours.mixer.qkv.weight.chunk(2)
        theirs.toqk.weight.copy_(queries * d_head**0.5)
        theirs.tov.weight.copy_(values)
        theirs.to_out.load_state_dict(ours.mixer.out.state_dict())
        torch.manual_seed(SEED)
        drawn = torch.randn(1, d_head, HASHES, half)  # one set for all heads
        ours.mixer.attention.rotations.copy_(drawn.permute(2, 0, 1, 3))
    return Pair(ours, Seeded(theirs), "reformer-pytorch", SETTING, tolerance(length), WHY)


class HuggingFace(nn.Module):
    """The inner attention of transformers, followed by an output projection as in our layer."""

    def __init__(self, attention: nn.Module, d_model: int) -> None:
        super().__init__()
        self.attention, self.out = attention, nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.attention(x).hidden_states)
        return y


def hugging_face(d_model: int, n_heads: int, length: int) -> Pair:
    """It divides keys by their norm, as our layer does, and does not scale the logits."""
    from transformers import ReformerConfig as Options
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    ours = sublayer(d_model, n_heads, length)
    d_head, buckets = d_model // n_heads, length // BUCKET
    options = Options(
        hidden_size=d_model,
        num_attention_heads=n_heads,
        attention_head_size=d_head,
        lsh_attn_chunk_length=BUCKET,
        lsh_attention_probs_dropout_prob=0.0,
        num_hashes=HASHES,
        num_buckets=buckets,
        max_position_embeddings=length,
        hash_seed=SEED,
        is_decoder=False,
    )
    theirs = HuggingFace(LSHSelfAttention(options), d_model)
    with torch.no_grad():
        queries, values = ours.mixer.qkv.weight.chunk(2)
        theirs.attention.query_key.weight.copy_(queries)
        theirs.attention.value.weight.copy_(values)
        theirs.out.load_state_dict(ours.mixer.out.state_dict())
        torch.manual_seed(SEED)
        drawn = torch.randn(n_heads, d_head, HASHES, buckets // 2)
        ours.mixer.attention.rotations.copy_(drawn.permute(2, 0, 1, 3))
    return Pair(ours, theirs, "transformers", SETTING, tolerance(length), WHY)
