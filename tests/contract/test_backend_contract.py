"""What every backend holds. A new backend is picked up by its name; it needs an oracle and nothing else here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compare.runs.measure import saved_bytes
from tests.conftest import Case, cases, find_oracle, heads
from zoo import Encoder, MultiHeadAttention, available, describe
from zoo.contract import Attention, Dims
from zoo.registry import build

SCALE = 12  # how many times larger or smaller than full's a fresh layer's output may be
LENGTHS = (2, 65, 96)  # beside those at which the oracle is asked
FORMS = list({(case.name, case.causal): case for case in reversed(cases())}.values())  # with the first of its options
HALVES = [(case, torch.float16) for case in cases()] + [(form, torch.bfloat16) for form in FORMS]  # float16 is narrower
IN_HALVES = pytest.mark.parametrize(("one", "dtype"), HALVES, ids=str)


def pad_right(batch: int, length: int, real: int) -> Tensor:
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, real:] = True
    return mask


def scattered(batch: int, length: int) -> Tensor:
    """Padding anywhere: left, middle, right; the first position of the first sample is real."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(5)) < 0.4
    mask[0, 0] = False
    return mask


def test_output_has_shape_and_dtype_of_input(case: Case) -> None:
    sublayer = case.sublayer()
    for length in LENGTHS:
        x = torch.randn(2, length, 16)
        y = sublayer(x)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert y.isfinite().all()


@pytest.mark.law("padding")
@pytest.mark.parametrize("mask", [pad_right(2, 50, 1), scattered(2, 50)], ids=["one real", "anywhere"])
def test_padding_content_changes_nothing(case: Case, mask: Tensor) -> None:
    sublayer = case.sublayer().double()
    x = torch.randn(2, 50, 16, dtype=torch.float64)
    results = []
    for content in (0.0, 1e4):
        filled = x.masked_fill(mask[..., None], content).requires_grad_()
        y = sublayer(filled, key_padding_mask=mask)
        sublayer.zero_grad()
        (y * torch.arange(16)).sum().backward()
        results.append([y, filled.grad, *(p.grad for p in sublayer.parameters())])
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(clean, dirty, atol=1e-9, rtol=1e-9)
    assert (results[0][1][mask] == 0).all(), "padding received a gradient"
    assert (results[0][0][mask] == 0).all(), "padded positions are not 0"


@pytest.mark.law("padding")
def test_padding_to_the_right_by_any_amount_changes_nothing(case: Case) -> None:
    sublayer = case.sublayer().double()
    x = torch.randn(2, 96, 16, dtype=torch.float64)
    short = sublayer(x[:, :33])
    for length in (34, 64, 96):
        long = sublayer(x[:, :length], key_padding_mask=pad_right(2, length, 33))
        torch.testing.assert_close(short, long[:, :33], atol=1e-9, rtol=1e-9)


def test_padding_on_either_side_and_between_changes_nothing(name: str) -> None:
    ways = [(False, "rotary"), (False, "learned"), (True, "sinusoidal"), (True, "rotary")]
    for causal, positions in ways[: 4 if describe(name).traits.causal else 2]:
        encoder = Encoder(
            name,
            conv_width=3,
            positions=positions,
            causal=causal,
            vocab_size=9,
            d_model=16,
            n_heads=2,
            n_layers=2,
            max_len=64,
        )
        encoder.double().eval()
        tokens = torch.randint(9, (3, 23))
        bare = encoder(tokens)
        hidden = torch.ones(3, 40, dtype=torch.bool)
        places = [range(17, 40), range(23), sorted({*range(40)} - {*range(1, 35, 2)})]  # left, right, between
        for sample, place in enumerate(places):
            hidden[sample, list(place)] = False
        padded = torch.full((3, 40), 8).masked_scatter(~hidden, tokens)
        y = encoder(padded, key_padding_mask=hidden)
        torch.testing.assert_close(y[~hidden].view(bare.shape), bare, atol=1e-9, rtol=1e-9)
        assert (y[hidden] == 0).all()


@pytest.mark.law("padding")
def test_a_mask_without_padding_changes_nothing(case: Case) -> None:
    sublayer = case.sublayer().double()
    x = torch.randn(2, 50, 16, dtype=torch.float64)
    torch.testing.assert_close(sublayer(x), sublayer(x, key_padding_mask=pad_right(2, 50, 50)), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("one", "dtype"),
    [(case, torch.float32) for case in cases()] + [(form, torch.bfloat16) for form in FORMS],
    ids=str,
)
def test_samples_of_padding_alone_give_zero(one: Case, dtype: torch.dtype) -> None:
    sublayer = one.sublayer().to(dtype)
    mask = pad_right(3, 50, 0)
    mask[1] = False
    x = torch.randn(3, 50, 16, dtype=dtype, requires_grad=True)
    y = sublayer(x, key_padding_mask=mask)
    y.sum().backward()
    assert (y[[0, 2]] == 0).all()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.law("batch")
def test_a_sample_does_not_depend_on_its_batch_mates(case: Case) -> None:
    sublayer = case.sublayer().double()
    x = torch.randn(3, 50, 16, dtype=torch.float64)
    x[1] *= 100
    mask = torch.stack([pad_right(1, 50, real)[0] for real in (50, 9, 37)])
    together = sublayer(x, key_padding_mask=mask)
    for i in range(3):
        alone = sublayer(x[i : i + 1], key_padding_mask=mask[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-9, rtol=1e-9)


@pytest.mark.law("causal")
@pytest.mark.parametrize("padded", [False, True])
def test_causal_editing_a_token_leaves_earlier_outputs_alone(causal_case: Case, padded: bool) -> None:
    sublayer = causal_case.sublayer().double()
    mask = scattered(2, 50) if padded else None
    x = torch.randn(2, 50, 16, dtype=torch.float64)
    before = sublayer(x, key_padding_mask=mask)
    for edited, scale in ((1, 30.0), (20, 1.0), (49, 30.0)):
        changed = x.clone()
        changed[:, edited] = scale * torch.randn(2, 16, dtype=torch.float64)
        after = sublayer(changed, key_padding_mask=mask)
        torch.testing.assert_close(after[:, :edited], before[:, :edited], atol=1e-9, rtol=1e-9)


@pytest.mark.law("causal")
def test_causal_future_gets_no_gradient_from_the_past(causal_case: Case) -> None:
    x = torch.randn(2, 50, 16, dtype=torch.float64, requires_grad=True)
    causal_case.sublayer().double()(x)[:, :30].square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, 30:].abs().max() <= 1e-12 * x.grad.abs().max()  # a Fourier transform rounds, the others give 0


@IN_HALVES
def test_low_precision_stays_finite_and_close(one: Case, dtype: torch.dtype) -> None:
    backend = one.backend().to(dtype)
    inputs = [x.detach() for x in heads(backend, 65, dtype=dtype)]
    masks = (None, scattered(2, 65))
    found = [backend(*inputs, key_padding_mask=mask) for mask in masks]
    exact = backend.float()
    for mask, low in zip(masks, found, strict=True):
        want = exact(*(x.float() for x in inputs), key_padding_mask=mask)
        assert low.dtype == dtype
        assert low.isfinite().all()
        error = (low.float() - want).abs().max() / want.abs().max()
        assert error < (0.02 if dtype == torch.bfloat16 else 0.003)


@IN_HALVES
def test_autocast_stays_finite_with_large_activations(one: Case, dtype: torch.dtype) -> None:
    sublayer = one.sublayer()
    x = (100 * torch.randn(2, 65, 16)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = sublayer(x, key_padding_mask=scattered(2, 65))
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_evaluation_is_deterministic_and_state_dict_round_trips(case: Case) -> None:
    first, second = case.sublayer(seed=0), case.sublayer(seed=1)
    x = torch.randn(2, 65, 16)
    y = first(x)
    assert torch.equal(y, first(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(y, second(x))


@pytest.mark.law("state")
def test_a_forward_changes_no_state(case: Case) -> None:
    sublayer = case.sublayer()
    before = {key: value.clone() for key, value in sublayer.state_dict().items()}
    for mode in (True, False):
        sublayer.train(mode)(torch.randn(2, 65, 16))
    for key, value in sublayer.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed by a forward"


def test_random_parts_are_seeded_and_change_by_redraw_only(case: Case) -> None:
    first, second = case.sublayer(seed=3, max_len=1024), case.sublayer(seed=3, max_len=1024)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    for key, value in second.state_dict().items():
        assert torch.equal(value, before[key])
    torch.manual_seed(99)
    first.mixer.redraw()
    changed = [key for key, value in first.state_dict().items() if not torch.equal(value, before[key])]
    if not case.traits.stochastic:
        assert not changed
    elif dict(case.options).get("n_random") != 0:
        assert changed
    assert not set(changed) & {key for key, _ in first.named_parameters()}, "redraw() touched learned weights"


@pytest.mark.parametrize(("length", "padded"), [(1, True), (3, False), (33, True), (50, False)])
def test_forward_and_gradients_match_the_oracle(case: Case, length: int, padded: bool) -> None:
    backend = case.backend().double()
    inputs = heads(backend, length)
    mask = scattered(2, length) if padded else None
    real = torch.ones(2, length, dtype=torch.bool) if mask is None else ~mask
    weight = torch.randn(inputs[-1].shape, dtype=torch.float64)
    leaves = [*dict.fromkeys(inputs), *backend.parameters()]
    results = []
    for compute in (backend, lambda *a, **kw: find_oracle(case.name).oracle(backend, *a, **kw)):
        out = compute(*inputs, key_padding_mask=mask)
        shown = real[:, None, :, None] if isinstance(backend, Attention) else real[..., None]
        out = out * shown  # what stands at padded positions is the shell's business
        grads = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
        results.append(
            [out, *(g if g is not None else torch.zeros_like(x) for g, x in zip(grads, leaves, strict=True))]
        )
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-9, rtol=1e-7)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("attention", available())
def test_any_length_batch_mask_head_size_dtype_and_capacity(attention: str, data: st.DataObject) -> None:
    """Forward against the oracle for whatever comes: in float64 exactly, in lower precision roughly."""
    entry, oracle = describe(attention), find_oracle(attention)
    torch.manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    options = dict(data.draw(st.sampled_from(oracle.OPTIONS), label="options"))
    if entry.traits.capacity and data.draw(st.booleans(), label="change capacity"):
        options[entry.traits.capacity] = data.draw(st.integers(1, 100), label="capacity")
    try:
        config = entry.config(**options)
    except ValueError:  # options that do not go together
        reject()
    length = data.draw(st.integers(1, 96), label="length")
    batch = data.draw(st.integers(1, 3), label="batch")
    n_heads = data.draw(st.sampled_from([1, 2, 3, 4]), label="n_heads")
    d_head = data.draw(st.sampled_from([3, 8, 16]), label="d_head")
    causal = entry.traits.causal and data.draw(st.booleans(), label="causal")
    dtype = data.draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]), label="dtype")
    dims = Dims(d_model=n_heads * d_head, n_heads=n_heads, max_len=96, causal=causal)
    backend = build(config, dims).double().eval()
    shape = (batch, length, dims.d_model)
    if isinstance(backend, Attention):
        shape = (batch, n_heads, length, d_head)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    inputs = ((q, q, v) if backend.traits.shared_qk else (q, k, v)) if isinstance(backend, Attention) else (q,)
    mask = torch.rand(batch, length) < torch.rand(())
    real = ~mask[:, None, :, None] if isinstance(backend, Attention) else ~mask[..., None]
    exact = backend(*inputs, key_padding_mask=mask)
    literal = oracle.oracle(backend, *inputs, key_padding_mask=mask)
    torch.testing.assert_close(exact * real, literal * real, atol=1e-8, rtol=1e-6)
    if dtype != torch.float64:
        low = backend.to(dtype)(*(x.to(dtype) for x in inputs), key_padding_mask=mask)
        assert low.dtype == dtype
        assert low.isfinite().all()


@pytest.mark.law("subquadratic")
def test_saved_bytes_grow_as_claimed(name: str) -> None:
    def saved(length: int) -> int:
        backend = build(name, Dims(d_model=16, n_heads=2, max_len=4096))
        inputs = heads(backend, length, batch=1, dtype=torch.float32)
        return saved_bytes(lambda: backend(*inputs), backend)

    growth = saved(4096) / saved(2048)
    if describe(name).traits.memory == "O(N²)":
        assert growth > 3
    else:
        assert growth < 2.5


@pytest.mark.parametrize("causal", [False, True])
def test_no_tensor_of_n_by_n_is_ever_made(name: str, causal: bool) -> None:
    """No tensor in forward or backward has N²/4 elements, at a width where the honest ones are far below."""
    traits = describe(name).traits
    if not traits.subquadratic or (causal and not traits.causal):
        pytest.skip("not sub-quadratic" if not traits.subquadratic else "no causal form")
    length = 3072
    backend = build(name, Dims(d_model=4, n_heads=1, max_len=length, causal=causal))
    shape = (1, 1, length, 4) if isinstance(backend, Attention) else (1, length, 4)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    inputs = ((q, q, v) if traits.shared_qk else (q, k, v)) if isinstance(backend, Attention) else (q,)
    watch = LargestTensor()
    for mask in (None, pad_right(1, length, 3000)):
        with watch:
            backend(*inputs, key_padding_mask=mask).sum().backward()
    assert watch.elements < length**2 / 4, f"a tensor of {watch.elements} elements"


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.law("gradients")
def test_every_parameter_gets_a_finite_gradient(case: Case) -> None:
    sublayer = case.sublayer()
    (sublayer(torch.randn(2, 96, 16)) * torch.randn(2, 96, 16)).sum().backward()
    for key, parameter in sublayer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradcheck(form: Case) -> None:
    backend = form.backend(d_model=4, n_heads=2, max_len=12).double()
    inputs = tuple(dict.fromkeys(heads(backend, 11, batch=1, d_model=4)))

    def run(*leaves: Tensor) -> Tensor:
        q, *rest = leaves
        return backend(*((q, q, *rest) if form.traits.shared_qk else leaves))

    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, fast_mode=True)


@pytest.mark.law("scale")
def test_a_fresh_layer_gives_about_as_much_as_full(name: str) -> None:
    """Full attention gives means over many values, about 0.14 here; a method that passes on one value gives 1."""

    def size(attn: str) -> float:
        torch.manual_seed(0)
        layer = MultiHeadAttention(attn, d_model=64, n_heads=4, max_len=64)
        return layer(torch.randn(8, 64, 64)).std().item()

    assert 1 / SCALE < size(name) / size("full") < SCALE


def test_every_backend_has_an_oracle(name: str) -> None:
    assert callable(find_oracle(name).oracle)


def test_a_backend_without_an_oracle_is_found() -> None:
    with pytest.raises(AssertionError, match="'unheard_of' has no oracle"):
        find_oracle("unheard_of")
