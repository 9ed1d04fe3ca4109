"""Trained models on disk: encoder and head in safetensors, the record that made them, and a card with the scores."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from compare.display import score_text
from compare.record import Record
from compare.runs.kept import HEAD, INT8, RECORD, TUNED
from compare.runs.model import Sizes
from compare.runs.quantise import plain_tensors
from compare.runs.train import Trainer
from compare.runs.tune import fixed_encoder, tuned_tensors
from compare.spec import RunSpec, reproduce
from compare.units import slug

CARD = """---
library_name: attention-zoo
tags:
- attention-zoo
---
# {label} on {task}

An encoder with the attention `{label}`, trained on the task `{task}`: {summary}.

{scores}

{use}

Made by

```
{command}
```
"""


IN_PYTHON = """```python
from zoo import Encoder
encoder = Encoder.from_pretrained("this folder")  # without the head
```"""
ON_COMMAND = """Its linear maps have weights of int8. `python -m compare predict --model "this folder" --data FILE` and
`python -m compare evaluate --model "this folder"` use it."""


def keep(trainer: Trainer, record: Record, out: Path) -> None:
    """Write the trained model into a folder of its own under ``out``, and name the folder in the record.

    The folder appears when it is whole. It holds ``config.json`` and ``model.safetensors`` of the encoder
    (``Encoder.from_pretrained`` reads them), ``head.safetensors``, ``record.json`` and a card, ``README.md``. A
    quantised model has ``int8.safetensors`` in place of the tensors of encoder and head.
    """
    spec = trainer.spec
    name = f"models/{slug(spec.label, spec.task, str(spec.seq_len), f'seed-{spec.seed}', spec.run_id)}"
    folder = out / name
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write(trainer, record | {"model": name}, part)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt of the same run
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    record["model"] = name


def write(trainer: Trainer, record: Record, part: Path) -> None:
    """Write the files of a kept model into a folder."""
    spec, model = trainer.spec, trainer.trained
    (part / "README.md").write_text(card(spec, record))
    if spec.quantize is not None:
        write_tensors(plain_tensors(trainer.model), part / INT8)
    else:
        encoder = fixed_encoder(model.encoder) if trainer.tuned else model.encoder
        encoder.save_pretrained(part)
        write_tensors(model.head.state_dict(), part / HEAD)
        if trainer.tuned:
            write_tensors(tuned_tensors(model.encoder), part / TUNED)
    kept = record | {"command": reproduce(spec), "sizes": asdict(Sizes.of(trainer.task))}
    kept["class_names"] = list(trainer.task.class_names)
    (part / RECORD).write_text(json.dumps(kept, indent=1) + "\n")


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, file)


def card(spec: RunSpec, record: Record) -> str:
    rows = [("test", score_text(record)), ("validation", score_text(record, "val_score"))]
    rows += [(f"trivial: {name}", f"{value:.4g}") for name, value in record["baselines"].items()]
    scores = "\n".join(["| split | score |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)])
    use = IN_PYTHON if spec.quantize is None else ON_COMMAND
    return CARD.format(
        **{"label": spec.label, "task": spec.task, "summary": record["task_summary"], "scores": scores},
        **{"use": use, "command": reproduce(spec)},
    )
