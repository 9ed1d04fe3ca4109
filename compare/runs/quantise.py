"""Trained models with weights of int8, by torchao, in memory and on disk."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from compare.runs.measure import own_part, storage_bytes
from compare.runs.model import Model
from zoo.pretrained import check_fit, read_tensors


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
    """Bytes of parameters and buffers that this process holds; each storage counts once."""
    tensors = map(own_part, (*model.parameters(), *model.buffers()))
    return storage_bytes(part for x in tensors for part in parts_of("", x).values())


def parts_of(name: str, x: Tensor) -> dict[str, Tensor]:
    """Name -> the plain tensors that hold a tensor: of a quantised one ``name.qdata``, its integers, and its scales."""
    if not hasattr(x, "__tensor_flatten__"):
        return {name: x}
    inner, _ = x.__tensor_flatten__()
    return {full: part for own in inner for full, part in parts_of(f"{name}.{own}", getattr(x, own)).items()}


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a quantised model in tensors that a file can hold."""
    return {full: part for name, x in model.state_dict().items() for full, part in parts_of(name, x).items()}


def fill(model: nn.Module, file: Path) -> None:
    """Give a quantised model the integers, scales and other tensors of a file.

    Raises:
        ValueError: the file is missing or damaged, or a tensor does not fit; the message names some.
    """
    own, tensors = plain_tensors(model), read_tensors(file)
    check_fit(own, tensors, str(file))
    with torch.no_grad():
        for name, x in own.items():
            x.copy_(tensors[name])
