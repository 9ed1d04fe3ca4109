"""The scan of recurrences, and the two that are shared, against loops over the positions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compare.runs.measure import saved_bytes
from zoo.contract import Tensors
from zoo.cores import recurrences
from zoo.cores import scan as core
from zoo.cores.recurrences import decayed, delta
from zoo.cores.scan import CHUNK, Chunk, scan, scan_both, scan_step

LENGTHS = [1, CHUNK - 1, CHUNK, CHUNK + 1, 300]
CHUNKS = [decayed, delta]


@pytest.fixture(params=["short chunks", "long ones", "long ones, folded"])
def as_on_any_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as on a CPU, where the batch is large and where it is small, or as elsewhere, of three blocks."""
    if request.param != "short chunks":
        monkeypatch.setattr(core, "chunk_size", lambda *_: 3 * CHUNK)
    if request.param == "long ones":
        monkeypatch.setattr(core, "CACHED", 2**30)


on_any_device = pytest.mark.usefixtures("as_on_any_device")


def inputs(
    chunk: Chunk, length: int, *, heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensors, Tensors]:
    """Sequences and a state that is not 0. Heads share queries and keys in ``decayed``, not in ``delta``."""
    torch.manual_seed(0)
    M, D = 3, 5
    shared = 1 if chunk is decayed else heads
    q, k = torch.randn(2, batch, shared, length, M, dtype=dtype)
    v = torch.randn(batch, heads, length, D, dtype=dtype)
    log_decay = -torch.rand(batch, heads, length, dtype=dtype)
    state = (torch.randn(batch, heads, M, D, dtype=dtype),)
    if chunk is decayed:
        return (q, k, v, log_decay), state
    k = k / k.norm(dim=-1, keepdim=True)
    return (q, k, v, torch.rand(batch, heads, length, dtype=dtype), log_decay), state


def loop(sequences: Tensors, state: Tensors, *, reverse: bool = False) -> Tensor:
    """The recurrences one position after another: with four sequences ``decayed``, with five ``delta``."""
    q, k, v, *beta, log_decay = (x.flip(2) if reverse else x for x in sequences)
    (S,) = state
    rows = []
    for t in range(v.shape[2]):
        S = log_decay[:, :, t].exp()[..., None, None] * S
        key, value = k[:, :, t], v[:, :, t]
        if beta:
            value = beta[0][:, :, t, None] * (value - torch.einsum("bhm,bhmd->bhd", key, S))
        S = S + key[..., :, None] * value[..., None, :]
        rows.append(torch.einsum("bhm,bhmd->bhd", q[:, :, t].expand(*S.shape[:3]), S))
    out = torch.stack(rows, dim=2)
    return out.flip(2) if reverse else out


def gradients(out: Tensor, leaves: Tensors) -> Tensors:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad((out * weight).sum(), leaves)


def assert_equal(ours: Tensors, literal: Tensors, atol: float = 1e-10, rtol: float = 1e-8) -> None:
    for mine, other in zip(ours, literal, strict=True):
        torch.testing.assert_close(mine, other, atol=atol, rtol=rtol)


def against_the_loop(chunk: Chunk, sequences: Tensors, state: Tensors, *, reverse: bool = False, **how: int) -> None:
    leaves = tuple(x.requires_grad_() for x in sequences)
    ours, literal = scan(chunk, leaves, state, reverse=reverse, **how), loop(leaves, state, reverse=reverse)
    assert_equal((ours, *gradients(ours, leaves)), (literal, *gradients(literal, leaves)))


# What is computed


@on_any_device
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_both_directions_at_once_are_two_scans(chunk: Chunk, length: int) -> None:
    forth, state = inputs(chunk, length)
    back = tuple(x if i == 0 else 0.5 * x for i, x in enumerate(forth))  # the first is shared
    leaves = tuple(x.requires_grad_() for x in (*forth, *(x.detach() for x in back[1:])))
    forth, back = leaves[: len(forth)], (leaves[0], *leaves[len(forth) :])
    ours = torch.cat(scan_both(chunk, forth, back, state), dim=-1)
    apart = torch.cat([scan(chunk, forth, state), scan(chunk, back, state, reverse=True)], dim=-1)
    assert_equal((ours, *gradients(ours, leaves)), (apart, *gradients(apart, leaves)))


def test_chunks_are_as_long_as_their_weights_stay_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(batch: int, heads: int, directions: int) -> int:
        return core.chunk_size(directions * [(torch.zeros(batch, 1, 9, 2), torch.zeros(batch, heads, 9))], folds=True)

    monkeypatch.setattr(core, "CACHED", 4 * 4 * CHUNK**2)
    assert [size(1, 4, 1), size(1, 4, 2), size(2, 8, 1), size(64, 8, 2)] == [2 * CHUNK, CHUNK, CHUNK, CHUNK]
    monkeypatch.setattr(core, "CACHED", 1)
    assert size(1, 1, 1) == CHUNK


def test_elsewhere_chunks_hold_as_many_weights_whatever_the_batch() -> None:
    def weights(batch: int, directions: int, folds: bool) -> int:
        x = torch.empty(batch, 4, 9, 2, device="meta")
        size = core.chunk_size(directions * [(x,)], folds)
        assert size % CHUNK == 0
        return directions * batch * 4 * size * (CHUNK if folds else size)

    for batch, directions in ((1, 1), (1, 2), (8, 1), (64, 2)):
        assert weights(batch, directions, folds=True) == core.AT_ONCE
        assert core.AT_ONCE / 4 <= weights(batch, directions, folds=False) <= core.AT_ONCE


@pytest.mark.parametrize("heads", [1, 4, 64, 1000])
def test_no_chunk_of_a_cpu_is_folded(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "CACHED", 2**18)
    x = torch.empty(heads, 1, 10_000, 1)
    assert not core.is_long(x[:, :, : core.chunk_size([(x,)], True)], CHUNK)


@on_any_device
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_scan_is_the_loop(chunk: Chunk, length: int, reverse: bool) -> None:
    against_the_loop(chunk, *inputs(chunk, length), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_may_have_any_size(chunk: Chunk, size: int, reverse: bool) -> None:
    against_the_loop(chunk, *inputs(chunk, 100), reverse=reverse, size=size)


@on_any_device
@pytest.mark.parametrize("shared", [(0, 1, 2), (3,), (0, 1, 2, 3)], ids=["q, k, v", "decay", "all"])
def test_heads_of_size_1_are_shared(shared: tuple[int, ...]) -> None:
    sequences, state = inputs(decayed, 150)
    against_the_loop(decayed, tuple(x[:, :1] if i in shared else x for i, x in enumerate(sequences)), state)


@on_any_device
@pytest.mark.parametrize("chunk", CHUNKS)
def test_steps_are_the_scan(chunk: Chunk) -> None:
    sequences, state = inputs(chunk, 40)
    whole, rows = scan(chunk, sequences, state), []
    for t in range(40):
        row, state = scan_step(chunk, t, tuple(x[:, :, t : t + 1] for x in sequences), state)
        rows.append(row)
    torch.testing.assert_close(torch.cat(rows, dim=2), whole)


def test_a_chunk_is_told_its_first_position() -> None:
    def numbers(first: int, state: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        return x + first, state

    x = torch.zeros(1, 1, 10, 1)
    assert scan(numbers, (x,), (), size=4).flatten().tolist() == [0] * 4 + [4] * 4 + [8] * 2
    assert scan(numbers, (x,), (), size=4, reverse=True).flatten().tolist() == [0] * 2 + [2] * 4 + [6] * 4


@on_any_device
def test_with_keys_at_right_angles_delta_remembers_the_last_value_of_each() -> None:
    torch.manual_seed(0)
    keys = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    written, asked = torch.randint(8, (2, 300))
    v = torch.randn(300, 5, dtype=torch.float64)
    one = torch.ones(1, 1, 300, dtype=torch.float64)
    state = (torch.zeros(1, 1, 8, 5, dtype=torch.float64),)
    out = scan(delta, (keys[asked][None, None], keys[written][None, None], v[None, None], one, 0 * one), state)[0, 0]
    for t in range(300):
        places = (written[: t + 1] == asked[t]).nonzero()
        torch.testing.assert_close(out[t], v[places[-1, 0]] if len(places) else 0 * v[t])


# Decays and gates at their ends


@on_any_device
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("strong", [-1e4, -math.inf])
def test_decays_of_0_and_1_are_exact(chunk: Chunk, strong: float) -> None:
    sequences, state = inputs(chunk, 300)
    log_decay = sequences[-1]
    log_decay[:, :, 50:60], log_decay[:, :, [0, 70, 127, 128, 299]], log_decay[0, 0, 200:260] = 0, strong, strong
    finite = (*sequences[:-1], log_decay.clamp(min=-1e4))  # of a loop the gradient of exp(-inf) · S is fine as well
    leaves, others = (tuple(x.clone().requires_grad_() for x in given) for given in (sequences, finite))
    ours, literal = scan(chunk, leaves, state), loop(others, state)
    assert_equal((ours, *gradients(ours, leaves)), (literal, *gradients(literal, others)))


@on_any_device
@pytest.mark.parametrize("chunk", CHUNKS)
def test_strong_decays_take_nothing_from_weak_ones_beside_them(chunk: Chunk) -> None:
    """In float32 a difference of sums from the start of the chunk would keep two digits of the weak ones."""
    sequences, state = inputs(chunk, 200)
    sequences[-1][:, :, 3:100:2] = -1e4
    wide = tuple(x.clone().requires_grad_() for x in sequences)
    narrow = tuple(x.detach().float().requires_grad_() for x in sequences)
    ours, literal = scan(chunk, narrow, tuple(x.float() for x in state)), loop(wide, state)
    pairs = zip((ours, *gradients(ours, narrow)), (literal, *gradients(literal, wide)), strict=True)
    for mine, other in pairs:
        assert (mine - other).norm() < 1e-6 * other.norm()


@on_any_device
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_delta_at_the_ends_of_its_gate(strength: float) -> None:
    (q, k, v, beta, log_decay), state = inputs(delta, 200)
    sequences = (q, k, v, torch.full_like(beta, strength), log_decay)
    against_the_loop(delta, sequences, state)
    if strength == 0:
        out = scan(delta, (q, k, v, 0 * beta, 0 * log_decay), state)
        torch.testing.assert_close(out, q @ state[0])


@on_any_device
def test_delta_stays_exact_where_all_keys_are_one() -> None:
    """Its system is then the worst there is: all ones below the diagonal."""
    (q, k, v, beta, log_decay), state = inputs(delta, 300)
    against_the_loop(delta, (q, k[:, :, :1].repeat(1, 1, 300, 1), v, 0 * beta + 1, 0 * log_decay), state)


# Precision


@on_any_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_half_precision_is_summed_in_float32(chunk: Chunk, dtype: torch.dtype) -> None:
    """Products of queries and keys, and their gradients, are beyond the range of float16."""
    (q, k, v, *rest), state = inputs(chunk, 1000, dtype=torch.float32)
    if chunk is decayed:
        k, v, state = 300 * k, 1e-3 * v, (1e-3 * state[0],)
    sequences = [x.to(dtype) for x in (300 * q, k, v, *rest)]
    results = []
    for given in (sequences, [x.float() for x in sequences]):
        leaves = tuple(x.clone().requires_grad_() for x in given)
        out = scan(chunk, leaves, state)
        assert out.dtype == leaves[0].dtype
        results.append([out, *torch.autograd.grad(out, leaves, torch.full_like(out, 0.01))])
    for low, high in zip(*results, strict=True):
        assert low.isfinite().all()
        assert (low.float() - high).norm() < (1e-3 if dtype == torch.float16 else 6e-3) * high.norm()


@on_any_device
def test_autocast_changes_nothing() -> None:
    sequences, state = inputs(delta, 150, dtype=torch.float32)
    want = scan(delta, sequences, state)
    step, _ = scan_step(delta, 0, tuple(x[:, :, :1] for x in sequences), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scan(delta, sequences, state), want)
        assert torch.equal(scan_step(delta, 0, tuple(x[:, :, :1] for x in sequences), state)[0], step)


# Gradients


def gated(
    _first: int, state: Tensors, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensors]:
    """A running sum of what is not hidden, and a count of it, as one state of two tensors."""
    total, count = state
    y = (torch.tanh(x @ weight) + bias).masked_fill(hidden, 0)
    seen = count + (~hidden).to(count).cumsum(2)
    sums = total + y.cumsum(2)
    return sums / seen.clamp(min=1), (sums[:, :, -1:], seen[:, :, -1:])


def gated_inputs(dtype: torch.dtype) -> tuple[Tensors, Tensors, Tensors]:
    """Sequences, state and constants of ``gated``."""
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((2, 3, 150, 4), (4, 5), (5,)))
    hidden = torch.rand(2, 1, 150, 1) < 0.3
    zero = torch.zeros(2, 3, 1, 5, dtype=torch.promote_types(dtype, torch.float32))
    return (x, hidden), (zero, zero[:, :1, :, :1]), (weight, bias)


@pytest.mark.parametrize("reverse", [False, True])
def test_constants_get_gradients_and_bool_sequences_pass(reverse: bool) -> None:
    (x, hidden), state, constants = gated_inputs(torch.float64)
    leaves = tuple(each.requires_grad_() for each in (x, *constants))
    ours = scan(gated, (x, hidden), state, constants, reverse=reverse, size=32)
    turned = [each.flip(2) if reverse else each for each in (x, hidden)]
    whole, _ = gated(0, state, *turned, *constants)
    whole = whole.flip(2) if reverse else whole
    assert_equal((ours, *gradients(ours, leaves)), (whole, *gradients(whole, leaves)))


def test_gradients_of_constants_are_summed_in_float32() -> None:
    """One of bfloat16 that took each chunk's part would stand still once it is 256 times as large."""

    def times(_first: int, state: Tensors, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensors]:
        assert weight.dtype == torch.float32
        return x * weight, state

    weight = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    scan(times, (torch.ones(1, 1, 1000, 1, dtype=torch.bfloat16),), (), (weight,), size=1).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.item() == 1000


@on_any_device
def test_what_needs_no_gradient_gets_none() -> None:
    (q, k, v, log_decay), state = inputs(decayed, 150)
    for x in (k, state[0]):
        x.requires_grad_()
    scan(decayed, (q, k, v, log_decay), state).sum().backward()
    assert k.grad is not None
    assert q.grad is v.grad is log_decay.grad is state[0].grad is None


@pytest.mark.parametrize("chunk", CHUNKS)
def test_states_that_are_not_kept_are_computed_again(chunk: Chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, state = inputs(chunk, 300)
    for kept, every in ((1, 1), (0.02, 6 if chunk is decayed else 4), (1e-9, 300)):
        monkeypatch.setattr(core, "KEPT", kept)
        assert min(core._interval(sequences, state, 16), 300) == every
        for reverse in (False, True):
            against_the_loop(chunk, sequences, state, reverse=reverse, size=16)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradcheck(chunk: Chunk, reverse: bool) -> None:
    sequences, state = inputs(chunk, 9, batch=1)
    leaves = tuple(x.requires_grad_() for x in sequences)
    assert torch.autograd.gradcheck(lambda *xs: scan(chunk, xs, state, reverse=reverse, size=4), leaves, fast_mode=True)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 5, 8])
def test_states_are_passed_by_doubling_as_one_by_one(blocks: int, numbers: bool) -> None:
    torch.manual_seed(0)
    keeps = torch.rand(2, 3, blocks, *((1, 1) if numbers else (4, 4)), dtype=torch.float64)
    before, writes = (
        torch.randn(2, 3, 1, 4, 5, dtype=torch.float64),
        torch.randn(2, 3, blocks, 4, 5, dtype=torch.float64),
    )
    leaves = tuple(x.requires_grad_() for x in (before, keeps, writes))
    rows = [before[:, :, 0]]
    for c in range(blocks):
        kept = keeps[:, :, c]
        rows.append((kept * rows[-1] if numbers else kept @ rows[-1]) + writes[:, :, c])
    ours, literal = recurrences._Passed.apply(*leaves), torch.stack(rows[1:], dim=2)
    assert_equal((ours, *gradients(ours, leaves)), (literal, *gradients(literal, leaves)))


# Memory


@on_any_device
@pytest.mark.parametrize(("width", "bound"), [(16, 1.3), (64, 1.3), (512, 1.3)])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_little_more_than_the_inputs_is_kept(chunk: Chunk, width: int, bound: float) -> None:
    """Whatever the state has: at a width of 512 it is as large as 170 positions."""

    def saved(length: int) -> tuple[int, int]:
        leaves = [torch.randn(1, 1, length, width, requires_grad=True) for _ in range(3)]
        leaves += [torch.zeros(1, 1, length, requires_grad=True) for _ in range(1 + (chunk is delta))]
        state = (torch.zeros(1, 1, width, width),)
        return saved_bytes(lambda: scan(chunk, tuple(leaves), state), nn.Module()), sum(x.nbytes for x in leaves)

    (short, _), (long, given) = saved(2048), saved(4096)
    assert long < bound * given
    assert long < 2.01 * short
