"""Every module is called, never read: hooks, adapters, pruning, quantised and offloaded weights reach all of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.conftest import Case, cases
from zoo import Encoder
from zoo.embeddings import Table

LENGTH = 16
ONCE = {case.name: case for case in sorted(cases(), key=lambda case: case.causal)}  # one of each, causal if it can
MEMORY = ["checkpointing", "reversible"]
EACH = [(case, "plain") for case in cases()] + [(case, form) for case in ONCE.values() for form in MEMORY]
IN_STEPS = [(case, form) for case, form in EACH if case.causal and form != "checkpointing"]
IN_EACH_FORM = pytest.mark.parametrize(("one", "form"), EACH, ids=str)


def make(case: Case, form: str = "plain", **options: Any) -> Encoder:
    torch.manual_seed(0)
    odd = case.options and {"features": 3, "query_width": 5}.items() & dict(case.options).items()  # nothing to turn
    options = {"positions": "sinusoidal" if odd else "rotary", "conv_width": 3, "dropout": 0.0} | options
    options |= {} if form == "plain" else {form: True}
    return Encoder(case.config(), d_model=16, n_heads=2, n_layers=1, d_ff=24, max_len=LENGTH, vocab_size=9,
                   causal=case.causal, **options)  # fmt: skip


def tokens() -> Tensor:
    return torch.randint(9, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def walk(encoder: Encoder, ids: Tensor) -> Tensor:
    """All positions step by step."""
    state, outputs = None, []
    for token in ids.unbind(1):
        y, state = encoder.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1)


def callable_parts(encoder: Encoder) -> dict[str, nn.Module]:
    return {name: part for name, part in encoder.named_modules() if not isinstance(part, nn.ModuleList)}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@IN_EACH_FORM
def test_every_hook_of_every_module_fires(one: Case, form: str) -> None:
    encoder = make(one, form).train()
    fired = Counter[tuple[str, str]]()
    for name, part in callable_parts(encoder).items():
        part.register_forward_pre_hook(lambda *_, name=name: fired.update([("before", name)]))
        part.register_forward_hook(lambda *_, name=name: fired.update([("after", name)]))
        part.register_full_backward_hook(lambda *_, name=name: fired.update([("backward", name)]))
    encoder(tokens()).square().sum().backward()
    wanted = {
        (kind, name)
        for name, part in callable_parts(encoder).items()
        for kind in ("before", "after", "backward")
        if not (kind == "backward" and isinstance(part, Table))  # whose numbers no gradient reaches
    }
    assert wanted - set(fired) == set()
    if form == "reversible":
        assert fired["after", "layers.0"] == fired["backward", "layers.0"] == 1


def scaled(_part: nn.Module, _inputs: object, result: Any) -> Any:
    return tuple(1.01 * x for x in result) if isinstance(result, tuple) else 1.01 * result


@pytest.mark.parametrize(
    ("one", "form"), [pair for pair in EACH if pair[0].causal and pair[1] != "checkpointing"], ids=str
)
def test_what_hooks_make_of_results_counts_in_steps_as_in_forward(one: Case, form: str) -> None:
    encoder = make(one, form).double().eval()
    before = encoder(tokens())
    parts, fired = callable_parts(encoder), set()
    for name, part in parts.items():
        if not isinstance(part, Table):  # forms may compute one thing in two ways, equal with these numbers alone
            part.register_forward_hook(scaled)
        part.register_forward_hook(lambda *_, name=name: fired.add(name))
    after = encoder(tokens())
    assert (after - before).abs().max() > 0.01
    fired.clear()
    steps = walk(encoder, tokens())
    assert set(parts) - fired == set()
    torch.testing.assert_close(steps, after, atol=1e-9, rtol=1e-9)


# What stands in the place of a linear map


class Adapter(nn.Module):
    """A linear map that is frozen, and a learned one of rank 2 beside it. It has no weight of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y

    def merged(self) -> nn.Linear:
        self.base.weight.data += self.up.weight @ self.down.weight
        return self.base


def replace(module: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> None:
    """Put ``by(part)`` in the place of each part of a kind."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) is kind:
                setattr(part, name, by(child))


@IN_EACH_FORM
def test_adapters_count_and_learn(one: Case, form: str) -> None:
    encoder = make(one, form).double().requires_grad_(False)
    replace(encoder, nn.Linear, Adapter)
    encoder.double().train()
    y = encoder(tokens())
    (y * torch.randn(16, dtype=y.dtype)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (".up." in name or ".down." in name), name
    encoder.eval()
    steps = walk(encoder, tokens()) if one.causal else None
    y = encoder(tokens())
    replace(encoder, Adapter, Adapter.merged)
    merged = encoder(tokens())
    torch.testing.assert_close(y, merged, atol=1e-9, rtol=1e-9)
    if steps is not None:
        torch.testing.assert_close(steps, merged, atol=1e-9, rtol=1e-9)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    "weight_norm": parametrizations.weight_norm,
}


@pytest.mark.parametrize("form", ["plain", "reversible"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_count_and_learn(name: str, change: str, form: str) -> None:
    encoder = make(Case(name), form).train()
    before = encoder(tokens()).detach()
    for part in list(encoder.modules()):
        if isinstance(part, nn.Linear):
            CHANGES[change](part)
    for _ in range(2):
        y = encoder(tokens())
        encoder.zero_grad()
        y.square().mul(torch.arange(16)).sum().backward()
    assert ((y - before).abs().max() > 1e-3) == (change != "weight_norm")
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


REPEATED = [("full", form) for form in MEMORY] + [("hyena", "plain")]


@pytest.mark.parametrize(("variant", "form"), [("full", "plain"), *REPEATED])
def test_cached_weights_learn_or_are_refused(variant: str, form: str) -> None:
    encoder = make(Case(variant), form)
    for part in list(encoder.modules()):
        if isinstance(part, nn.Linear):
            parametrizations.weight_norm(part)
    with parametrize.cached(), torch.no_grad():
        assert encoder(tokens()).isfinite().all()
    with parametrize.cached():
        if (variant, form) not in REPEATED:
            encoder(tokens()).sum().backward()
            assert all(parameter.grad is not None for parameter in encoder.parameters())
        else:
            with pytest.raises(ValueError, match=r"train without torch\.nn\.utils\.parametrize\.cached\(\)"):
                encoder(tokens())


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("one", ONCE.values(), ids=str)
def test_linear_maps_of_8_bits_take_the_place_of_others(one: Case) -> None:
    encoder = make(one).eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(encoder), {nn.Linear})
    want, y = encoder(tokens()), quantised(tokens())
    assert (y - want).norm() < 0.4 * want.norm()
    if one.causal:
        assert walk(quantised, tokens()).isfinite().all()


def offload(encoder: Encoder) -> None:
    """Leave the parameters of each module on the meta device, but during a call of this module."""
    for part in encoder.modules():
        own = {name: parameter.detach() for name, parameter in part.named_parameters(recurse=False)}

        def load(part: nn.Module, _inputs: object, own: dict[str, Tensor] = own) -> None:
            for name, x in own.items():
                part.register_parameter(name, nn.Parameter(x, requires_grad=False))

        def leave(part: nn.Module, _inputs: object, _result: object, own: dict[str, Tensor] = own) -> None:
            for name, x in own.items():
                part.register_parameter(name, nn.Parameter(x.to("meta"), requires_grad=False))

        leave(part, (), ())
        part.register_forward_pre_hook(load)
        part.register_forward_hook(leave)


def test_weights_may_be_elsewhere_but_during_the_call_of_their_module(case: Case) -> None:
    encoder = make(case).eval()
    want = encoder(tokens()).detach()
    offload(encoder)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    torch.testing.assert_close(encoder(tokens()), want)
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens()), want)
    if case.causal:
        torch.testing.assert_close(walk(encoder, tokens()), want, atol=1e-4, rtol=1e-4)
