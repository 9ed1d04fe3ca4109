"""Parameter-efficient tuning: a few new weights are trained beside the fixed ones of an encoder.

- ``lora`` (Hu et al., arXiv:2106.09685), by peft: every linear map of the layers gets an update of rank ``RANK``.
- ``adapter`` (Houlsby et al., arXiv:1902.00751): a bottleneck of width ``RANK`` after attention and feed-forward.
- ``prompt`` (Lester et al., arXiv:2104.08691): ``PROMPTS`` learned vectors stand before the embedded input.
- ``prefix`` (Li and Liang, arXiv:2101.00190; as deep prompts, Liu et al., arXiv:2110.07602): learned vectors stand
  before the input of every layer, so that they become keys and values through the layer's own projections. Every
  attention can have them; reversible layers cannot.

The head is trained in full.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.runs.model import PROMPTS, Model, per_position
from compare.spec import RunSpec
from zoo import Encoder
from zoo.contract import UnsupportedError
from zoo.layers import EncoderLayer
from zoo.pretrained import in_short

RANK = 8
DEVIATION = 0.02  # of new vectors


def check_tuner(method: str) -> None:
    """Raise NotImplementedError unless the library that a method needs is installed."""
    if method == "lora" and find_spec("peft") is None:
        raise NotImplementedError("LoRA needs peft: pip install 'attention-zoo[tune]'")


def check_start(spec: RunSpec, left: list[str]) -> None:
    """Raise UnsupportedError where the tuning of a run would fix parameters of the encoder that nothing trained.

    left: names of the parameters that the model of ``--start`` lacks.
    """
    new = [name for name in left if name.startswith("encoder.")]
    if spec.tune is not None and not spec.pretrain and new:
        raise UnsupportedError(
            f"--tune {spec.tune} fixes the encoder, and the model of --start lacks {in_short(new)}: "
            "add --pretrain SHARE, which trains them first"
        )


def tune(model: Model, method: str) -> None:
    """Fix the encoder's weights and add those that the method trains.

    Raises:
        UnsupportedError: the encoder has no place for them.
    """
    encoder = model.encoder.requires_grad_(False)
    device = next(encoder.parameters()).device
    if method == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        wanted = [name for name in linear if name.startswith("layers.")]
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=wanted), encoder)
    elif method == "adapter":
        for layer in encoder.layers:
            assert isinstance(layer, EncoderLayer)
            for sublayer in (layer.attention, layer.feed_forward):
                sublayer.add_module("adapter", Bottleneck(encoder.d_model).to(device))
                sublayer.register_forward_hook(lambda sublayer, _inputs, y: y + sublayer.adapter(y))
    else:
        put_prompts_before(encoder, deep=method == "prefix")


class Bottleneck(nn.Module):
    """A residual branch that begins as 0. (…, C) -> (…, C)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(d_model, RANK), nn.Linear(RANK, d_model)
        nn.init.normal_(self.down.weight, std=DEVIATION)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(F.gelu(self.down(x)))
        return y


def put_prompts_before(encoder: Encoder, *, deep: bool) -> None:
    """Put learned vectors before every input of an encoder; its result stays that of the real positions.

    deep: the vectors before the input of each layer are learned, not only those before the first.
    """
    embedding = encoder.embedding if encoder.embedding is not None else encoder.features
    if embedding is None:
        raise UnsupportedError("prompts need an encoder that embeds its input")
    settings, longest = encoder.settings, encoder.max_len
    assert settings is not None
    learned = per_position(lambda n: Encoder(**settings | {"max_len": n}), longest - PROMPTS, longest)
    if learned:
        raise UnsupportedError(
            f"prompts move all positions, and it learns for each position ({', '.join(learned)}): those of the prompts "
            "would stay untrained"
        )
    if deep and encoder.reversible:
        raise UnsupportedError("a prefix replaces inputs of layers, which reversible layers recompute")
    lead = 0 if encoder.class_token is None else 1

    def lengthened(_encoder: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        (x,), mask = inputs, options.get("key_padding_mask")
        if mask is not None:
            options = options | {"key_padding_mask": F.pad(mask, (PROMPTS, 0))}
        return (F.pad(x, (0, 0) * (x.dim() - 2) + (PROMPTS, 0)),), options

    def of_input(module: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
        return replaced(module, y, 0)

    def of_layer(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (replaced(module, inputs[0], lead), *inputs[1:])

    encoder.register_forward_pre_hook(lengthened, with_kwargs=True)
    encoder.register_forward_hook(lambda _e, _inputs, y: torch.cat([y[:, :lead], y[:, lead + PROMPTS :]], dim=1))
    embedding.register_forward_hook(of_input)
    places: list[nn.Module] = [embedding, *(encoder.layers if deep else ())]
    for module in places:  # parameters of the modules themselves, so that a copy of the encoder has its own
        prompt = torch.randn(PROMPTS, encoder.d_model, device=embedding.weight.device) * DEVIATION
        module.register_parameter("prompt", nn.Parameter(prompt))
    for module in places[1:]:
        module.register_forward_pre_hook(of_layer)


def replaced(module: nn.Module, x: Tensor, first: int) -> Tensor:
    """``x`` (B, N, C) with the module's prompt in place of the positions from ``first`` on."""
    prompts = module.get_parameter("prompt").to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :first], prompts, x[:, first + PROMPTS :]], dim=1)


def tuned_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights that tuning added, by name."""
    return {name: p.detach() for name, p in encoder.named_parameters() if p.requires_grad}


def fixed_encoder(encoder: Encoder) -> Encoder:
    """The encoder without what tuning added: its fixed weights in a plain encoder."""
    assert encoder.settings is not None
    added = tuned_tensors(encoder)
    plain = Encoder(**encoder.settings)
    fixed = {name: x for name, x in encoder.state_dict().items() if name not in added}
    plain.load_state_dict({name.replace(".base_layer.", "."): x for name, x in fixed.items()})  # peft's name for them
    return plain
