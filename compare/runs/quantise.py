"""Trained models with weights of int8, by torchao."""

from __future__ import annotations

import copy
from importlib.util import find_spec

from torch import Tensor, nn

from compare.runs.measure import storage_bytes
from compare.runs.model import Model


def check_quantiser() -> None:
    """Raise NotImplementedError unless torchao is installed."""
    if find_spec("torchao") is None:
        raise NotImplementedError("int8 weights need torchao: pip install 'attention-zoo[int8]'")


def quantised(model: Model, scheme: str) -> Model:
    """A copy whose linear maps have weights of int8, one scale for each row.

    Args:
        scheme: ``int8-dynamic`` also rounds the inputs of linear maps to int8, one scale for each token;
            ``int8-weights`` keeps inputs and products in floating point.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    kinds = {"int8-dynamic": Int8DynamicActivationInt8WeightConfig, "int8-weights": Int8WeightOnlyConfig}
    small = copy.deepcopy(model).eval()
    quantize_(small, kinds[scheme]())
    return small


def weights_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; each storage counts once."""
    return storage_bytes(part for x in (*model.parameters(), *model.buffers()) for part in parts_of(x))


def parts_of(x: Tensor) -> list[Tensor]:
    """The plain tensors that hold a tensor: of a quantised one its integers and its scales."""
    if not hasattr(x, "__tensor_flatten__"):
        return [x]
    names, _ = x.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(x, name))]
