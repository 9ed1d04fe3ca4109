"""Interchangeable attention backends behind one Transformer encoder.

>>> from zoo import Encoder
>>> encoder = Encoder(attn="linformer")  # (B, N, 512) -> (B, N, 512)
"""

from zoo.encoder import Encoder, MultiHeadAttention
from zoo.registry import available, describe, register

__all__ = ["Encoder", "MultiHeadAttention", "available", "describe", "register"]
