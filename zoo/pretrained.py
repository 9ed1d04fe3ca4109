"""Encoders on disk and on the Hugging Face hub: weights in safetensors, the arguments of the constructor in JSON.

Nothing is unpickled, and no code comes with a model: a backend from outside must be imported first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.registry import describe, resolve

T = TypeVar("T", bound="Pretrained")
FORMAT = 1
"""Raise it when a config means something else: an older version then refuses it."""
NAMED = 3  # tensors in a message


class Pretrained(
    ModelHubMixin,
    library_name="attention-zoo",
    tags=["attention-zoo"],
    repo_url="https://github.com/attention-zoo/attention-zoo",
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of an ``Encoder``.

    >>> encoder.save_pretrained("my-encoder")
    >>> encoder = Encoder.from_pretrained("my-encoder")  # a folder, or the id of a model on the hub
    >>> encoder = Encoder.from_pretrained("my-encoder", attn="linear")  # the same weights behind another attention

    ``from_pretrained`` takes any argument of the constructor in place of the stored one. With another ``attn`` it
    copies the weights that both have (see ``copy_shared``). The result is in evaluation mode.

    Raises:
        ValueError: files that are missing, damaged or of another version; or weights of another shape, by name.
    """

    settings: dict[str, Any] | None
    """The arguments of the constructor; None where the encoder was not built from arguments alone."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        if self.settings is None:
            raise ValueError(
                "an encoder made by from_torch or from_vit cannot be saved: build an Encoder and copy its weights"
            )
        entry, config = resolve(self.settings["attn"])
        options = {option.name: as_json(getattr(config, option.name)) for option in fields(entry.config)}
        kept = {"format": FORMAT, **self.settings, "attn": {"name": entry.name, "options": options}}
        (save_directory / constants.CONFIG_NAME).write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in self.state_dict().items()}
        save_file(tensors, save_directory / constants.SAFETENSORS_SINGLE_FILE, metadata={"format": "pt"})

    @classmethod
    def _from_pretrained(
        cls: type[T],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> T:
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            stored = "none" if not isinstance(config, dict) else config.get("format", "none")
            raise ValueError(f"{model_id}: expected a {constants.CONFIG_NAME} of format {FORMAT}, got {stored}")
        file = Path(model_id, constants.SAFETENSORS_SINGLE_FILE)
        if not Path(model_id).is_dir():
            file = Path(
                hf_hub_download(
                    model_id,
                    constants.SAFETENSORS_SINGLE_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        tensors = read_tensors(file)
        stored = config["attn"]
        own = arguments.get("attn") == stored
        if own:
            arguments["attn"] = from_json(stored, model_id)
        model = cls(**arguments)
        assert isinstance(model, nn.Module)
        if own:
            fit(model, tensors, str(file))
        else:
            copy_shared(model, tensors)
        return model.eval()


def as_json(value: Any) -> Any:
    """An option as JSON; a tensor as nested lists."""
    return value.tolist() if isinstance(value, Tensor) else value


def from_json(stored: Mapping[str, Any], where: str) -> object:
    """The config of a backend from its stored name and options.

    Raises:
        ValueError: a name that is not registered, or options that this version lacks or refuses.
    """
    if ":" in stored["name"]:  # would import a module that the file names
        raise ValueError(f"{where}: expected the name of a registered attention, got {stored['name']!r}")
    entry = describe(stored["name"])
    unknown = sorted(set(stored["options"]) - set(entry.options))
    if unknown:
        raise ValueError(f"{where}: {entry.name} has no option {unknown[0]!r}: another version of the zoo saved it")
    options = {name: torch.tensor(v) if isinstance(v, list) else v for name, v in stored["options"].items()}
    return entry.config(**options)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has no {file.name}: expected a folder that save_pretrained wrote") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def fit(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load all tensors into a module.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the message names some, and nothing is loaded.
    """
    check_fit(module.state_dict(), tensors, where)
    module.load_state_dict(dict(tensors))


def check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError unless the tensors have the names and shapes of the model's ``own``."""
    wrong = [
        f"{name} has shape {tuple(x.shape)}, expected {tuple(own[name].shape)}"
        for name, x in tensors.items()
        if name in own and x.shape != own[name].shape
    ]
    missing, unknown = [name for name in own if name not in tensors], [name for name in tensors if name not in own]
    problems = [
        *wrong[:NAMED],
        *([f"{len(wrong) - NAMED} more of another shape"] if len(wrong) > NAMED else []),
        *([f"it lacks {in_short(missing)}"] if missing else []),
        *([f"it has {in_short(unknown)}, which the model lacks"] if unknown else []),
    ]
    if problems:
        raise ValueError(f"{where} does not fit: {'; '.join(problems)}")


def in_short(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def copy_shared(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy the tensors that the module has under the same name in the same shape; all others keep their values.

    Between two attentions behind the same shell these are embedding, projections, norms and feed-forwards.

    Returns:
        The names of the module's parameters that kept their values.
    """
    own = module.state_dict()
    shared = {name: x for name, x in tensors.items() if name in own and own[name].shape == x.shape}
    module.load_state_dict(shared, strict=False)
    return [name for name, _ in module.named_parameters() if name not in shared]
