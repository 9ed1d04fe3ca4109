"""What every backend declares of itself holds: traits, signatures, docstrings, initialisation and kernel."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from tests.conftest import Case
from zoo import MultiHeadAttention, describe
from zoo.contract import SHELL_INIT, Attention, Mixer
from zoo.shell import Shell


def test_rotary_positions_have_an_effect_where_the_traits_say_so(name: str) -> None:
    entry = describe(name)
    turned, plain = (
        MultiHeadAttention(name, d_model=16, n_heads=2, max_len=64, rotary=rotary).double() for rotary in (True, False)
    )
    turned.load_state_dict(plain.state_dict())
    x = torch.randn(2, 50, 16, dtype=torch.float64)
    change = (turned(x) - plain(x)).abs().max()
    assert change > 1e-3 if entry.traits.rotary else change == 0
    assert ("rotary positions have no effect" in " ".join(str(entry).split())) != entry.traits.rotary


def test_causal_is_refused_where_there_is_no_causal_form(name: str) -> None:
    if describe(name).traits.causal:
        pytest.skip("has a causal form")
    with pytest.raises(ValueError, match=f"{name} has no causal form; these have: .*full"):
        MultiHeadAttention(name, d_model=16, n_heads=2, causal=True)


def test_a_claim_to_be_subquadratic_is_a_claim_about_memory_too(name: str) -> None:
    traits = describe(name).traits
    assert not (traits.subquadratic and "N²" in traits.memory)


def test_signatures_are_exact(name: str) -> None:
    cls = describe(name).cls
    assert list(inspect.signature(cls.__init__).parameters) == ["self", "dims", "config"]
    want = (
        ["self", "q", "k", "v", "key_padding_mask"] if issubclass(cls, Attention) else ["self", "x", "key_padding_mask"]
    )
    forward = inspect.signature(cls.forward).parameters
    assert list(forward) == want
    assert forward["key_padding_mask"].kind is inspect.Parameter.KEYWORD_ONLY
    assert describe(name).config.__dataclass_params__.frozen


def test_the_file_says_what_it_implements(name: str) -> None:
    module = inspect.getmodule(describe(name).cls)
    assert module is not None
    doc = module.__doc__ or ""
    entry = describe(name)
    assert "Cost:" in doc, "the docstring of the file has no line 'Cost: …', the cost in N"
    assert "arXiv:" in doc or entry.traits.family == "control", "the docstring of the file has no 'arXiv:…'"
    assert entry.summary, "the class has no docstring, whose first line the tables show"
    unexplained = entry.options.keys() - entry.explanations.keys()
    assert not unexplained, f"the docstring of {entry.config.__name__} does not explain {unexplained} as 'name: text'"


def test_queries_and_keys_start_as_declared(name: str) -> None:
    entry = describe(name)
    layer = MultiHeadAttention(name, d_model=256, n_heads=4, max_len=64)
    if not isinstance(layer.mixer, Shell):
        assert (entry.traits.init is None) == ("init        the backend's own" in str(entry))
        return
    *found, values = (weight.square().mean().item() * 256 for weight in layer.mixer.qkv.weight.split(256))
    declared = entry.traits.init or SHELL_INIT
    assert found == pytest.approx([declared.variance] * len(found), rel=0.05)
    assert values == pytest.approx(1, rel=0.05)
    assert declared.source in " ".join(str(entry).split())


def first_scale(name: str) -> float:
    """The size of what a layer adds to inputs of size 1 before any training, on 64 positions."""
    sizes = []
    for seed in range(2):
        torch.manual_seed(seed)
        layer = MultiHeadAttention(name, d_model=64, n_heads=4, max_len=64)
        with torch.no_grad():
            sizes.append(layer(torch.randn(2, 64, 64)).std().item())
    return sum(sizes) / len(sizes)


def test_the_first_output_has_the_scale_of_full_or_of_the_input(name: str) -> None:
    """A mean over positions shrinks what it reads; a recurrence, a filter or a transform keeps its size."""
    size, full = first_scale(name), first_scale("full")
    if name == "skyformer":
        assert 10 * full < size < 25 * full, "its kernel sums without a norm, as its file says"
    else:
        assert 0.4 * full < size < 1.5


def test_kernel_is_named(case: Case) -> None:
    kernel = case.sublayer().kernel(torch.randn(2, 33, 16))
    assert kernel.name


def test_backends_are_attentions_or_mixers(name: str) -> None:
    assert issubclass(describe(name).cls, Attention | Mixer)
    assert issubclass(describe(name).cls, nn.Module)
