"""Helpers that several backends use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
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
    missing = -(-x.shape[dim] // multiple) * multiple - x.shape[dim]
    return F.pad(x, (0, 0) * (-dim - 1) + (0, missing), value=value) if traced() or missing else x


def leading(x: Tensor, count: int, dim: int) -> Tensor:
    """The first ``count`` entries along ``dim``. A compiler gets a copy, whose memory layout does not depend on whether
    ``count`` is all of them, so that ``count`` can stay dynamic."""
    if traced():
        return x.index_select(dim, torch.arange(count, device=x.device))
    return x.narrow(dim, 0, count)


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype for sums over ``x``: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear map of ``x`` returns; under autocast that is autocast's dtype."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def traced() -> bool:
    """Whether a compiler or a torch.func transform is tracing: neither can see into an autograd function."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Wrap the ``backward`` of an autograd function: differentiating its gradients raises RuntimeError.

    torch's ``once_differentiable`` raises in ``backward()`` only: ``torch.autograd.grad`` finds no path from its error
    node to the inputs, and returns 0 as the derivative. Here the path leads through the incoming gradients and through
    all tensors that forward saved: its inputs, or its result.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        saved = ctx.saved_tensors  # a checkpoint returns them only once
        opened = SimpleNamespace(**vars(ctx), saved_tensors=saved, needs_input_grad=ctx.needs_input_grad)
        with torch.no_grad():
            gradients = backward(opened, *grads)
        origins = [x for x in (*grads, *saved) if x is not None and x.requires_grad]
        present = [x for x in gradients if x is not None]
        passed = iter(_Once.apply(backward.__module__, len(present), *present, *origins))  # type: ignore[no-untyped-call]
        return tuple(None if x is None else next(passed) for x in gradients)

    return guarded


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, where: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.where = where
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"the gradients of {ctx.where} cannot be differentiated again (second derivatives, gradient penalties): "
            "use attn='full' or attn='naive', without reversible=True"
        )


def visible_keys(key_padding_mask: Tensor | None) -> Tensor | None:
    """(B, N) True = padding  ->  (B, 1, 1, N) True = may be attended to, as SDPA reads it."""
    return None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]


def sdpa_kernel_name(
    q: Tensor, key_padding_mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0
) -> Kernel:
    """The kernel that torch chooses in ``full_attention`` for inputs like ``q`` (B, H, N, D)."""
    mask = None if causal else visible_keys(key_padding_mask)
    choice = torch._fused_sdp_choice(q, q, q, mask, dropout, causal)
    return Kernel(f"torch SDPA {SDPA_NAMES[SDPBackend(choice)]} ({q.device.type})")


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention on torch's fused kernels, which never hold an N × N tensor, with any mask.

    q, k, v and the result: (B, H, N, D); key_padding_mask: (B, N) bool, True = padding; dropout: share of the weights
    that are dropped. On a CPU torch's kernel with dropout holds the N × N weights.

    The fused kernels take either a causal flag or a mask. To have both, padding becomes one more feature: every query
    has 1 there and a padded key a large negative number, so q·k hides the key.
    """
    if key_padding_mask is None or not causal:
        mask = visible_keys(key_padding_mask)
        return softmax_attention(q, k, v, mask, causal=causal, dropout=dropout)
    d_head = q.shape[-1]
    hidden = key_padding_mask[:, None, :, None]
    floor = torch.finfo(q.dtype).min / 4
    extra = (0, 8 - d_head % 8)  # the kernels need a width that is a multiple of 8
    q = F.pad(q, extra)
    k = F.pad(k.masked_fill(hidden, 0), extra)
    q = torch.cat([q[..., :d_head], torch.ones_like(q[..., :1]), q[..., d_head + 1 :]], dim=-1)
    bias = torch.zeros_like(k[..., :1]).masked_fill(hidden, floor)
    k = torch.cat([k[..., :d_head], bias, k[..., d_head + 1 :]], dim=-1)
    out = softmax_attention(q, k, F.pad(v, extra), causal=True, scale=d_head**-0.5, dropout=dropout)
    return out[..., :d_head].masked_fill(hidden, 0)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """torch's scaled_dot_product_attention, differentiable twice with any kernel that torch chooses, unless weights are
    dropped.

    q and the result: (…, N, D); k, v: (…, L, D); mask: (…, N, L) bool, True = may be attended to; dropout: share of the
    weights that are dropped.
    """
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scale)
    if not (torch.is_grad_enabled() and out.requires_grad) or traced() or dropout:
        return out
    twice: Tensor = _Twice.apply(out, q, k, v, mask, causal, scale)  # type: ignore[no-untyped-call]
    return twice


class _Twice(torch.autograd.Function):
    """The result of the fused kernel. Its gradients come from that kernel, whose backward cannot be differentiated; for
    second derivatives they come from matrix products instead."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.causal, ctx.scale = causal, scale
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return grad, *[None] * 6
        *inputs, mask = ctx.saved_tensors
        q, k, v = inputs = [x.view_as(x) if x.requires_grad else x for x in inputs]
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(grad.device.type, enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=ctx.causal, scale=ctx.scale)
        needed = [x for x in inputs if x.requires_grad]
        gradients = iter(torch.autograd.grad(out, needed, grad, create_graph=True))
        return None, *(next(gradients) if x.requires_grad else None for x in inputs), None, None, None


class _ConvolveTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        return _sum_taps(x, taps)

    @staticmethod
    @once
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
    """A short depthwise convolution without padding: x (…, n + width - 1, C), taps (width, …, C) -> (…, n, C)."""
    if traced():
        return _sum_taps(x, taps)
    out: Tensor = _ConvolveTaps.apply(x, taps)  # type: ignore[no-untyped-call]
    return out


def _sum_taps(x: Tensor, taps: Tensor) -> Tensor:
    n = x.shape[-2] - len(taps) + 1
    total = x[..., :n, :] * taps[0]
    for place, tap in enumerate(taps[1:], start=1):
        total.addcmul_(x[..., place : place + n, :], tap)
    return total


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.chunk(parts, dim=-1)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # to be differentiated again
            return torch.cat(grads, dim=-1), None
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
    """``x.chunk(parts, dim=-1)``. Its backward copies nothing if the gradients come from ``side_by_side``."""
    if traced():
        return x.chunk(parts, dim=-1)
    pieces: tuple[Tensor, ...] = _Split.apply(x, parts)  # type: ignore[no-untyped-call]
    return pieces


def side_by_side(*like: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors, each (B, H, N, D) like these, in memory as the pieces of one (B, N, …) projection."""
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
        again = torch.is_grad_enabled()  # to be differentiated again
        inputs = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.fn(*(x.view_as(x) for x in inputs))  # hooks, as those that count FLOPs, raise on a leaf
        return (None, *torch.autograd.grad(out, inputs, grad, create_graph=again))


def recompute(fn: Callable[..., Tensor], *inputs: Tensor, calls: Sequence[nn.Module] = ()) -> Tensor:
    """``fn(*inputs)``. Only the inputs are kept for backward, which runs ``fn`` again.

    Unlike torch.utils.checkpoint it keeps inputs as saved tensors, so that a count of saved bytes sees them. ``fn``
    must be deterministic. ``calls``: the modules that ``fn`` calls. A compiler chooses itself what it keeps.
    """
    if traced():
        return fn(*inputs)
    if calls:
        fn, learned = as_function(Calls(fn, *calls))
        inputs = (*inputs, *learned)
    out: Tensor = _Recompute.apply(fn, *inputs)  # type: ignore[no-untyped-call]
    return out


class Calls(nn.Module):
    """A function ``run`` and the modules that it calls, as one module."""

    def __init__(self, run: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.run, self.parts = run, nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)


def as_function(module: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """``module`` as a function of its inputs followed by its trainable tensors. Returns the function and these tensors.

    The function keeps using today's other tensors, also in backward, when a ``torch.func.functional_call`` around the
    module has already restored them.

    Raises:
        ValueError: parametrized weights that are cached, so that backward cannot compute them again.
    """
    cached = parametrize._cache_enabled and torch.is_grad_enabled()
    if cached and any(parametrize.is_parametrized(child) for child in module.modules()):
        raise ValueError(
            "expected parametrized weights that backward can compute again, got cached ones: train without "
            "torch.nn.utils.parametrize.cached()"
        )
    tensors = tensors_of(module)
    learned = {id(x): x for x in tensors.values() if x.requires_grad}

    def function(*arguments: Tensor) -> Tensor:
        inputs, own = arguments[: len(arguments) - len(learned)], arguments[len(arguments) - len(learned) :]
        lent, now = dict(zip(learned, own, strict=True)), tensors_of(module)
        wanted = {name: lent.get(id(x), x) for name, x in tensors.items()}
        changed = {name: x for name, x in wanted.items() if now.get(name) is not x}
        y: Tensor = functional_call(module, changed, inputs) if changed else module(*inputs)
        return y

    return function, list(learned.values())


def dtype_of(module: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype in which ``module`` takes ``x`` without autocast: that of its floating-point parameters.

    Without any, as in a quantised linear map, float32 at least.
    """
    floats = (own.dtype for own in tensors_of(module).values() if own.is_floating_point())
    return next(floats, accumulator(x))


def precisely(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` with input and parameters in float32 at least."""
    dtype, own = accumulator(x), tensors_of(module)
    narrow = {name: p.to(dtype) for name, p in own.items() if p.is_floating_point() and accumulator(p) != p.dtype}
    y: Tensor = functional_call(module, narrow, (x.to(dtype),)) if narrow else module(x.to(dtype))
    return y


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as ``torch.func.functional_call`` takes them; shared ones under all their names.

    Includes those of an ``nn.DataParallel`` replica, which holds its parameters as plain attributes.
    """
    tensors: dict[str, Tensor] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        own = child._parameters | child._buffers
        if "_is_replica" in vars(child):
            own |= {name: vars(child)[name] for name in vars(child).get("_former_parameters", vars(child))}
        tensors |= {f"{path}.{name}".lstrip("."): x for name, x in own.items() if isinstance(x, Tensor)}
    return tensors


class RestoreBuffers(AbstractContextManager[None]):
    """A context that replays the modules with today's buffers: random parts, and buffers that forward updates.

    It can be entered any number of times. Inside, each module has its buffer of now again, even if ``redraw`` has
    replaced it, with the numbers of now, even if forward has overwritten them.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.saved = [
            (child, name, buffer, buffer.clone() if traits.adapts else None)
            for module in modules
            for child in module.modules()
            if isinstance(traits := getattr(child, "traits", None), Traits) and (traits.adapts or traits.stochastic)
            for name, buffer in child.named_buffers(recurse=False)
        ]

    def __enter__(self) -> None:
        self.replaced = [
            (getattr(child, name), None if copy is None else buffer.clone()) for child, name, buffer, copy in self.saved
        ]
        for child, name, buffer, copy in self.saved:
            setattr(child, name, buffer)
            if copy is not None:
                buffer.copy_(copy)

    def __exit__(self, *_error: object) -> None:
        for (child, name, buffer, _), (now, left) in zip(self.saved, self.replaced, strict=True):
            setattr(child, name, now)
            if left is not None:
                buffer.copy_(left)
