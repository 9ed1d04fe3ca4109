"""Interchangeable attention backends behind one Transformer encoder.

>>> from zoo import Encoder
>>> encoder = Encoder(attn="linformer")  # (B, N, 512) -> (B, N, 512)
"""

from zoo.contract import Attention, Dims, Mixer, Traits
from zoo.encoder import Encoder
from zoo.registry import available, describe, register
from zoo.shell import MultiHeadAttention
from zoo.torch_attention import TorchAttention

__all__ = [
    "Attention",
    "Dims",
    "Encoder",
    "Mixer",
    "MultiHeadAttention",
    "TorchAttention",
    "Traits",
    "available",
    "describe",
    "register",
]
