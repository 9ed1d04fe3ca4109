"""Trained models that `keep` wrote, read again: to score them, to go on from them, and as teachers."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compare.record import Record
from compare.runs.model import Model, Sizes, hidden_ids, room
from compare.runs.quantise import check_quantiser, fill, quantised
from compare.runs.tune import check_tuner, tune, tuned_tensors
from compare.spec import RunSpec, read_spec
from zoo import Encoder
from zoo.pretrained import check_fit, copy_shared, fit, read_tensors

HEAD, TUNED, INT8, RECORD = "head.safetensors", "tuned.safetensors", "int8.safetensors", "record.json"


class Kept(NamedTuple):
    """A model from disk, with the spec and the record of the run that trained it."""

    model: Model
    spec: RunSpec
    record: Record


def read_run(folder: Path) -> tuple[RunSpec, Sizes, Record]:
    """The run that trained the model of a folder.

    Raises:
        ValueError: the folder is none that ``keep`` wrote, or is of another version.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        spec, sizes = spec_of(record), Sizes(**record["sizes"])
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {RECORD}: expected a model that --save kept") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RECORD} is damaged or of another version: {error}") from error
    module, colon, _ = spec.variant.partition(":")
    if colon and module not in sys.modules:  # reading a folder imports nothing that it names
        raise ValueError(f"{folder}: its attention is {spec.variant}: import {module} first, or give --attn")
    return spec, sizes, record


def load(folder: Path, max_len: int | None = None) -> Kept:
    """The model of a folder that ``keep`` wrote, in evaluation mode.

    Args:
        max_len: the longest input to build it for; None = the longest of its run.

    Raises:
        ValueError: the folder is none of these, or its tensors do not fit; in one line, by name.
        NotImplementedError: a library that the model needs is not installed.
    """
    spec, sizes, record = read_run(folder)
    if spec.tune is not None:
        check_tuner(spec.tune)
    if spec.quantize is not None:
        check_quantiser()
    longer = () if max_len is None else (max_len,)
    built = replace(spec, test_lens=(*spec.test_lens, *longer))
    model = Model(built, sizes)
    if spec.quantize is None:
        model.encoder = Encoder.from_pretrained(folder, max_len=built.max_len + room(spec.tune))
    if spec.tune is not None:
        tune(model, spec.tune)
    if spec.quantize is not None:
        model = quantised(model, spec.quantize)
        fill(model, folder / INT8)
        return Kept(model, spec, record)
    if spec.tune is not None:
        added = read_tensors(folder / TUNED)
        check_fit(tuned_tensors(model.encoder), added, str(folder / TUNED))
        model.encoder.load_state_dict(added, strict=False)
    fit(model.head, read_tensors(folder / HEAD), str(folder / HEAD))
    return Kept(model.eval(), spec, record)


def spec_of(record: Record) -> RunSpec:
    """The spec of a record; fields that it lacks have their defaults."""
    values: dict[str, Any] = read_spec(record)
    return RunSpec.from_json(json.dumps(values))


def find_model(name: str, out: str | None) -> Path:
    """The folder of a kept model: the name itself, or the ``run_id`` of a run in the folder of the results.

    Raises:
        ValueError: there is no such model.
    """
    folders = [Path(name)]
    if out is not None:
        folders += Path(out, "models").glob(f"*_{name}")
    for folder in folders:
        if (folder / RECORD).is_file():
            return folder
    raise ValueError(f"expected a folder that --save wrote, got {name}")


def start_from(model: Model, spec: RunSpec, folder: Path) -> list[str]:
    """Give a model the weights of a kept one: those of the encoder, and those of the head where it has the same shape.

    Where the attention is another, the weights that both have are copied, and the rest stay as constructed. The vector
    of hidden tokens, which only models have that pretrain, stays too.

    Returns:
        The names of the parameters that stay as constructed.

    Raises:
        ValueError: inputs of another kind, weights of another shape, or a model that was tuned or quantised.
    """
    source, _, _ = read_run(folder)
    if source.tune is not None:
        raise ValueError(f"{folder}: expected a model whose encoder was trained, got one tuned by {source.tune}")
    if source.quantize is not None:
        raise ValueError(f"{folder}: expected a model of floating-point numbers, got one of {source.quantize}")
    tensors = read_tensors(folder / "model.safetensors")
    if (rows := tensors.get("embedding.weight")) is not None and model.encoder.embedding is not None:
        own = model.encoder.embedding.weight.detach()
        common = len(rows) - hidden_ids(source)
        if common == len(own) - hidden_ids(spec) and rows.shape[1] == own.shape[1]:
            tensors["embedding.weight"] = torch.cat([rows[:common], own[common:].to(rows.dtype)])
    if (source.variant, source.options) == (spec.variant, spec.options):
        fit(model.encoder, tensors, str(folder))
        left = []
    else:
        fit_inputs(model.encoder, tensors, str(folder))
        check_fit(outside_attention(model.encoder.state_dict()), outside_attention(tensors), str(folder))
        left = [f"encoder.{name}" for name in copy_shared(model.encoder, tensors)]
    head = read_tensors(folder / HEAD)
    if shapes(head) == shapes(model.head.state_dict()):
        model.head.load_state_dict(head)
        return left
    return [*left, *(f"head.{name}" for name, _ in model.head.named_parameters())]


def fit_inputs(encoder: Encoder, tensors: dict[str, Tensor], where: str) -> None:
    """Raise ValueError unless the tensors have the embedding of the encoder."""
    for part in ("embedding", "features"):
        module: nn.Module | None = getattr(encoder, part)
        own = {} if module is None else {f"{part}.{name}": x.shape for name, x in module.state_dict().items()}
        theirs = {name: x.shape for name, x in tensors.items() if name.startswith(f"{part}.")}
        if own != theirs:
            words = [
                ", ".join(f"{name} {tuple(shape)}" for name, shape in each.items()) or "none" for each in (own, theirs)
            ]
            raise ValueError(f"{where}: expected the {part} {words[0]}, got {words[1]}: it was trained on other inputs")


def outside_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an encoder that do not depend on its attention."""
    return {name: x for name, x in tensors.items() if not re.match(r"layers\.\d+\.attention\.", name)}


def shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: x.shape for name, x in tensors.items()}
