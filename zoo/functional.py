"""Helpers with two or more users among the backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend
from torch.nn.utils import parametrize

from zoo.contract import Kernel, Traits

SDPA_NAMES = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


def pad_to_multiple(x: Tensor, multiple: int, dim: int, value: float = 0) -> Tensor:
    """Pad ``x`` at the end of ``dim`` (negative) to the next multiple of ``multiple``."""
    missing = -x.shape[dim] % multiple
    return F.pad(x, (0, 0) * (-dim - 1) + (0, missing), value=value) if missing else x


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype for sums over ``x``: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def working_dtype(x: Tensor) -> torch.dtype:
    """What a linear map of ``x`` gives: under autocast that is another dtype."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def visible_keys(key_padding_mask: Tensor | None) -> Tensor | None:
    """(B, N) True = padding  ->  (B, 1, 1, N) True = may be attended to, as SDPA reads it."""
    return None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]


def sdpa_kernel_name(q: Tensor, key_padding_mask: Tensor | None = None, *, causal: bool = False) -> Kernel:
    """The kernel that torch chooses in ``full_attention`` for inputs like ``q`` (B, H, N, D)."""
    mask = None if causal else visible_keys(key_padding_mask)
    choice = torch._fused_sdp_choice(q, q, q, mask, 0.0, causal)
    return Kernel(f"torch SDPA {SDPA_NAMES[SDPBackend(choice)]} ({q.device.type})")


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Softmax attention on torch's fused kernels, which never hold an N × N tensor, whatever the mask.

    q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding.

    The fused kernels take either a causal flag or a mask. For both at once the padding travels as one more
    feature: every query has 1 there, a padded key a large negative number, so q·k hides it.
    """
    if key_padding_mask is None or not causal:
        mask = visible_keys(key_padding_mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    d_head = q.shape[-1]
    hidden = key_padding_mask[:, None, :, None]
    floor = torch.finfo(q.dtype).min / 4
    extra = (0, 8 - d_head % 8)  # the kernels want a width that is a multiple of 8
    q = F.pad(q, extra)
    k = F.pad(k.masked_fill(hidden, 0), extra)
    q = torch.cat([q[..., :d_head], torch.ones_like(q[..., :1]), q[..., d_head + 1 :]], dim=-1)
    bias = torch.zeros_like(k[..., :1]).masked_fill(hidden, floor)
    k = torch.cat([k[..., :d_head], bias, k[..., d_head + 1 :]], dim=-1)
    out = F.scaled_dot_product_attention(q, k, F.pad(v, extra), is_causal=True, scale=d_head**-0.5)
    return out[..., :d_head].masked_fill(hidden, 0)


class _ConvolveTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        n = x.shape[-2] - len(taps) + 1
        total = x[..., :n, :] * taps[0]
        for place, tap in enumerate(taps[1:], start=1):
            total.addcmul_(x[..., place : place + n, :], tap)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        places = [slice(place, place + grad.shape[-2]) for place in range(len(taps))]
        d_x = d_taps = None
        if ctx.needs_input_grad[0]:
            d_x = torch.zeros_like(x)
            for place, tap in zip(places, taps, strict=True):
                d_x[..., place, :].addcmul_(grad, tap)
        if ctx.needs_input_grad[1]:
            d_taps = torch.stack([(grad * x[..., place, :]).sum_to_size(taps.shape[1:]) for place in places])
        return d_x, d_taps


def convolve_taps(x: Tensor, taps: Tensor) -> Tensor:
    """A short depthwise convolution, not padded: x (…, n + width - 1, C), taps (width, …, C) -> (…, n, C)."""
    out: Tensor = _ConvolveTaps.apply(x, taps)  # type: ignore[no-untyped-call]
    return out


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.chunk(parts, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        first, width = grads[0], grads[0].shape[-1]
        shape = (*first.shape[:-1], len(grads) * width)
        stride = torch.empty(shape, device="meta").stride()
        adjacent = all(
            grad.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and grad.storage_offset() == first.storage_offset() + number * width
            and grad.stride() == stride
            for number, grad in enumerate(grads)
        )
        return first.as_strided(shape, stride) if adjacent else torch.cat(grads, dim=-1), None


def split(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """``x.chunk(parts, dim=-1)``, whose backward copies nothing where the gradients come from ``side_by_side``."""
    pieces: tuple[Tensor, ...] = _Split.apply(x, parts)  # type: ignore[no-untyped-call]
    return pieces


def side_by_side(*like: Tensor) -> tuple[Tensor, ...]:
    """Tensors to fill, (B, H, N, D) each as these, that lie in memory as the pieces of one (B, N, …) projection."""
    B, H, N, D = like[0].shape
    whole = like[0].new_empty(B, N, len(like), H, D)
    return tuple(piece.transpose(1, 2) for piece in whole.unbind(2))


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fn: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.fn = fn
        ctx.save_for_backward(*inputs)
        return fn(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = ctx.fn(*inputs)
        return (None, *torch.autograd.grad(out, inputs, grad))


def recompute(fn: Callable[..., Tensor], *inputs: Tensor, calls: Sequence[nn.Module] = ()) -> Tensor:
    """``fn(*inputs)``, keeping only the inputs for backward, which runs ``fn`` again.

    Unlike torch.utils.checkpoint this keeps them as saved tensors, so that a count of saved bytes sees them.
    ``fn`` must be deterministic. ``calls``: the modules that it calls.
    """
    if calls and torch.compiler.is_compiling():
        return fn(*inputs)
    if calls:
        fn, learned = as_function(Calls(fn, *calls))
        inputs = (*inputs, *learned)
    out: Tensor = _Recompute.apply(fn, *inputs)  # type: ignore[no-untyped-call]
    return out


class Calls(nn.Module):
    """``run``, and the modules that it calls, as one module."""

    def __init__(self, run: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.run, self.parts = run, nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)


def as_function(module: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """``module`` as a function of its inputs and, after them, of the tensors that it learns; and these tensors.

    Its other tensors stay those of now: ``torch.func.functional_call`` takes what it lends away again before backward.

    Raises:
        ValueError: parametrized weights that are cached, so that backward could not compute them again.
    """
    cached = parametrize._cache_enabled and torch.is_grad_enabled()
    if cached and any(parametrize.is_parametrized(part) for part in module.modules()):
        raise ValueError(
            "expected parametrized weights that backward can compute again, got them cached: train without "
            "torch.nn.utils.parametrize.cached()"
        )
    tensors = tensors_of(module)
    learned = {id(x): x for x in tensors.values() if x.requires_grad}

    def function(*given: Tensor) -> Tensor:
        inputs, own = given[: len(given) - len(learned)], given[len(given) - len(learned) :]
        lent, now = dict(zip(learned, own, strict=True)), tensors_of(module)
        wanted = {name: lent.get(id(x), x) for name, x in tensors.items()}
        changed = {name: x for name, x in wanted.items() if now.get(name) is not x}
        y: Tensor = functional_call(module, changed, inputs) if changed else module(*inputs)
        return y

    return function, list(learned.values())


def dtype_of(module: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype in which ``module`` takes ``x`` without autocast: that of its floating parameters.

    Float32 at least where it has none, as a quantised linear map.
    """
    floats = (own.dtype for own in tensors_of(module).values() if own.is_floating_point())
    return next(floats, accumulator(x))


def precisely(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in float32 at least, in which its parameters take part."""
    dtype, own = accumulator(x), tensors_of(module)
    narrow = {name: p.to(dtype) for name, p in own.items() if p.is_floating_point() and accumulator(p) != p.dtype}
    y: Tensor = functional_call(module, narrow, (x.to(dtype),)) if narrow else module(x.to(dtype))
    return y


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones under each of theirs, as ``torch.func.functional_call`` takes them.

    Those of a replica of ``nn.DataParallel`` too, which holds its parameters as plain attributes.
    """
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        own = part._parameters | part._buffers
        if "_is_replica" in vars(part):
            own |= {name: vars(part)[name] for name in vars(part).get("_former_parameters", vars(part))}
        found |= {f"{path}.{name}".lstrip("."): x for name, x in own.items() if isinstance(x, Tensor)}
    return found


def as_found(*modules: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Contexts in which the modules run again: where forward moves a backend's state, it is what it is now."""
    state = [
        buffer
        for module in modules
        for part in module.modules()
        if isinstance(traits := getattr(part, "traits", None), Traits) and "state" in traits.exceptions
        for buffer in part.buffers(recurse=False)
    ]
    found = [buffer.clone() for buffer in state]

    @contextmanager
    def again() -> Iterator[None]:
        left = [buffer.clone() for buffer in state]
        for buffer, before in zip(state, found, strict=True):
            buffer.copy_(before)
        try:
            yield
        finally:
            for buffer, after in zip(state, left, strict=True):
                buffer.copy_(after)

    return again
