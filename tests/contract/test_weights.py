"""What every backend holds where weights are made, moved, cast and loaded: it stays the same function."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import Case
from zoo import Encoder, MultiHeadAttention, available, describe
from zoo.attention.dilated import DilatedConfig
from zoo.attention.gau import GAUConfig
from zoo.heads import ClassificationHead, PairHead, RestoreHead, TokenHead

FORMS = [(name, causal) for name in available() for causal in (False, True)[: 1 + describe(name).traits.causal]]
EVERY_FORM = pytest.mark.parametrize(
    ("attn", "causal"), FORMS, ids=[name + "-causal" * causal for name, causal in FORMS]
)
TOKENS = torch.arange(40).view(2, 20) % 9


def encoder(attn: object, *, causal: bool = False, max_len: int = 24, **options: Any) -> Encoder:
    torch.manual_seed(0)
    net = Encoder(attn, d_model=16, n_heads=2, n_layers=1, max_len=max_len, vocab_size=9, causal=causal, **options)
    return net.eval()


def emptied(net: nn.Module) -> nn.Module:
    """``net`` on the CPU with nothing in it: what it does not make again or load is seen."""
    net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
    return net


def materialised(net: Encoder, weights: dict[str, Tensor]) -> None:
    emptied(net).load_state_dict(weights)


def assigned(net: Encoder, weights: dict[str, Tensor]) -> None:
    net.load_state_dict(weights, assign=True)


@pytest.mark.parametrize(("load", "positions"), [(materialised, "rotary"), (assigned, "sinusoidal")])
@EVERY_FORM
def test_weights_loaded_into_a_build_on_meta_give_the_same_function(
    attn: str, causal: bool, load: Callable[[Encoder, dict[str, Tensor]], None], positions: Any
) -> None:
    source = encoder(attn, causal=causal, positions=positions)
    with torch.device("meta"):
        target = encoder(attn, causal=causal, positions=positions)
    assert all(tensor.is_meta for tensor in (*target.parameters(), *target.buffers()))
    load(target, source.state_dict())
    assert torch.equal(target(TOKENS), source(TOKENS))


@pytest.mark.parametrize(("dtype", "positions"), [(torch.bfloat16, "rotary"), (torch.float16, "sinusoidal")])
@EVERY_FORM
def test_a_cast_and_back_rounds_weights_alone(attn: str, causal: bool, dtype: torch.dtype, positions: Any) -> None:
    source = encoder(attn, causal=causal, positions=positions)
    target = copy.deepcopy(source).to(dtype).float()
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(TOKENS), source(TOKENS))


@EVERY_FORM
def test_copies_compute_the_same(attn: str, causal: bool) -> None:
    source = encoder(attn, causal=causal, positions="rotary")
    want = source(TOKENS)
    for twin in (copy.deepcopy(source), pickle.loads(pickle.dumps(source)), copy.deepcopy(source).to("cpu")):
        assert torch.equal(twin(TOKENS), want)


@EVERY_FORM
def test_constructors_take_device_and_dtype(attn: str, causal: bool) -> None:
    options = {"d_model": 16, "n_heads": 2, "max_len": 24, "causal": causal, "dtype": torch.bfloat16}
    for cls in (Encoder, MultiHeadAttention):
        net = cls(attn, device="meta", **options)
        assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
        assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
        y = cls(attn, **options)(torch.randn(2, 20, 16, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16
        assert y.isfinite().all()


def test_weights_can_be_left_out_of_a_build(name: str) -> None:
    net = nn.utils.skip_init(Encoder, name, d_model=16, n_heads=2, n_layers=1, max_len=24, vocab_size=9).eval()
    materialised(net, encoder(name).state_dict())
    assert torch.equal(net(TOKENS), encoder(name)(TOKENS))


@pytest.mark.parametrize("head", [ClassificationHead, PairHead, RestoreHead, TokenHead])
def test_heads_take_device_and_dtype(head: Callable[..., nn.Module]) -> None:
    assert all(parameter.is_meta for parameter in head(16, 3, device="meta").parameters())
    assert {parameter.dtype for parameter in head(16, 3, dtype=torch.float64).parameters()} == {torch.float64}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@EVERY_FORM
def test_any_default_dtype_builds_and_runs(attn: str, causal: bool, dtype: torch.dtype) -> None:
    with default(dtype):
        net = encoder(attn, causal=causal, positions="rotary")
        net.redraw()
        y = net(TOKENS, key_padding_mask=TOKENS == 0)
        assert y.dtype == dtype
        assert y.isfinite().all()
        if causal and net.layers[0].attention.cache_size(1) is not None:
            y, _ = net.step(TOKENS[:, 0])
            assert y.dtype == dtype


class Doubles(TorchDispatchMode):
    """Fails where an operation makes a float64 tensor, which some devices lack, on ``device``."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            assert not (isinstance(x, Tensor) and x.dtype == torch.float64 and x.device.type == self.device), func
        return out


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@EVERY_FORM
def test_no_float64_is_made_where_the_weights_are(attn: str, causal: bool, positions: Any) -> None:
    with Doubles("meta"):
        encoder(attn, causal=causal, positions=positions, device="meta")
    net = encoder(attn, causal=causal, positions=positions)
    with Doubles("cpu"):
        net(TOKENS, key_padding_mask=TOKENS == 0).sum().backward()
        if causal and net.layers[0].attention.cache_size(1) is not None:
            net.step(TOKENS[:, 0])


@pytest.mark.parametrize("lengths", [(48, 24), (512, 1024)])
def test_weights_of_another_max_len_give_the_same_function_or_are_refused(case: Case, lengths: tuple[int, int]) -> None:
    source, target = (encoder(case.config(), causal=case.causal, max_len=length) for length in lengths)
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in (source, target)]
    if shapes[0] != shapes[1]:
        with pytest.raises(RuntimeError, match="size mismatch"):
            target.load_state_dict(source.state_dict())
        return
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(TOKENS), source(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "lengths", "named"),
    [
        ("cosformer", (512, 1024), ("max_len", 512, 1024)),
        ("hyena", (512, 1024), ("max_len", 512, 1024)),
        (DilatedConfig(segment=4), (512, 24), ("levels", 5, 3)),
        (GAUConfig(chunk=32), (24, 48), ("chunk", 24, 32)),
    ],
)
def test_a_refusal_names_both_sizes(config: object, lengths: tuple[int, int], named: tuple[str, int, int]) -> None:
    source, target = (encoder(config, max_len=length) for length in lengths)
    name, ours, theirs = named
    said = rf"built_for_{name}: copying a param with shape torch.Size\(\[{ours}, 0\]\).* torch.Size\(\[{theirs}, 0\]\)"
    with pytest.raises(RuntimeError, match=said):
        target.load_state_dict(source.state_dict())
