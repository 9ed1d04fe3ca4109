"""The trained model: an encoder and the head that a task needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.spec import RunSpec
from tasks import IGNORE, Task
from zoo import Encoder, describe
from zoo.contract import Backend
from zoo.heads import ClassificationHead, PairHead, RestoreHead, TokenHead

# Shares of hidden positions: BERT (arXiv:1810.04805, section 3.1, of which 80 % are hidden; here all are) and SimMIM
# (arXiv:2111.09886, section 4.1). Hidden features are 0.
TOKENS_HIDDEN, PATCHES_HIDDEN = 0.15, 0.6
PROMPTS = 16  # learned vectors before the input, of prompt and prefix tuning


def room(tune: str | None) -> int:
    """How many positions a method of tuning puts before the input."""
    return PROMPTS if tune in ("prompt", "prefix") else 0


def hidden_ids(spec: RunSpec) -> int:
    """How many ids the embedding has besides the task's: one for hidden tokens, in a run that restores them."""
    return int(spec.pretrain > 0 and spec.distill != "attention")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model needs to know of its task; fields as in ``Task``."""

    kind: str
    vocab_size: int | None
    n_features: int | None
    n_classes: int

    @classmethod
    def of(cls, task: Task) -> Sizes:
        return cls(**{field.name: getattr(task, field.name) for field in fields(cls)})


class Model(nn.Module):
    """An encoder and the head that the task needs."""

    def __init__(self, spec: RunSpec, task: Task | Sizes) -> None:
        super().__init__()
        restores = hidden_ids(spec) == 1
        self.sizes = task if isinstance(task, Sizes) else Sizes.of(task)
        self.encoder = Encoder(
            describe(spec.variant).config(**dict(spec.options)),
            d_model=spec.d_model,
            n_heads=spec.n_heads,
            n_layers=spec.n_layers,
            ff_chunk=spec.ff_chunk,
            dropout=spec.dropout,
            attention_dropout=spec.attention_dropout,
            max_len=spec.max_len + room(spec.tune),
            norm=spec.norm,  # type: ignore[arg-type]
            norm_type=spec.norm_type,  # type: ignore[arg-type]
            qk_norm=spec.qk_norm,
            init=spec.init,  # type: ignore[arg-type]
            activation=spec.activation,  # type: ignore[arg-type]
            positions=spec.positions,  # type: ignore[arg-type]
            class_token=spec.pool == "cls" and task.kind in ("sequence", "value"),
            conv_width=spec.conv_width,
            embedding_std=spec.embedding_std,
            vocab_size=None if task.vocab_size is None else task.vocab_size + hidden_ids(spec),
            n_features=task.n_features,
            causal=spec.is_causal,
            checkpointing=spec.checkpointing,  # type: ignore[arg-type]
            reversible=spec.reversible,
        )
        self.head: TokenHead | RestoreHead | PairHead | ClassificationHead
        if task.kind == "token":
            self.head = TokenHead(spec.d_model, task.n_classes)
        elif task.kind == "restore":
            self.head = RestoreHead(spec.d_model, task.n_classes, max_len=spec.max_len)
        elif task.kind == "pair":
            self.head = PairHead(spec.d_model, task.n_classes)
        else:
            self.head = ClassificationHead(spec.d_model, task.n_classes, pool=spec.pool)  # type: ignore[arg-type]
        restored = task.n_features if task.vocab_size is None else task.vocab_size
        self.restore = TokenHead(spec.d_model, restored) if restores and restored else None

    def forward(
        self, inputs: Tensor, targets: Tensor, padding: Tensor | None, *, restore: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Predictions (asked, n_classes) and targets (asked,) of all that the task asks for.

        restore: the question is instead what stands at hidden positions (see ``hide``); the targets are ids (asked,)
        with predictions (asked, vocab_size), or features (asked, n_features), both.
        """
        if restore:
            return self._restored(inputs, padding)
        x, mask = self.sequences(inputs, padding)
        return self.answer(self.encoder(x, key_padding_mask=mask), targets, mask)

    def sequences(self, inputs: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the encoder takes: of pairs both sequences, side by side, (B, 2, N) -> (2B, N)."""
        if self.sizes.kind != "pair":
            return inputs, padding
        return inputs.flatten(0, 1), None if padding is None else padding.flatten(0, 1)

    def answer(self, encoded: Tensor, targets: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predictions and targets as of ``forward``, from the encoder's result (B, N, C), of pairs (2B, N, C)."""
        if isinstance(self.head, PairHead):
            return self.head(encoded, key_padding_mask=padding), targets
        if isinstance(self.head, ClassificationHead):
            padding = padding if self.encoder.class_token is None else None  # the class token is the first position
            return self.head(encoded, key_padding_mask=padding), targets
        asked = targets != IGNORE
        predicted = self.head(encoded)[asked] if isinstance(self.head, RestoreHead) else self.head(encoded[asked])
        return predicted, targets[asked]

    def _restored(self, inputs: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.restore is not None
        inputs, padding = self.sequences(inputs, padding)
        real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if padding is None else ~padding
        if self.encoder.causal:
            asked = real.clone()
            asked[:, :-1] &= real[:, 1:]
            asked[:, -1] = False
            targets = inputs.roll(-1, 1)[asked]
        else:
            asked = hide(real, TOKENS_HIDDEN if inputs.dtype == torch.int64 else PATCHES_HIDDEN)
            targets = inputs[asked]
            empty = self.encoder.vocab_size - 1 if self.encoder.vocab_size is not None else 0
            inputs = inputs.masked_fill(asked if inputs.dim() == 2 else asked[..., None], empty)
        encoded = self.encoder(inputs, key_padding_mask=padding)
        if self.encoder.class_token is not None:
            encoded = encoded[:, 1:]
        predicted: Tensor = self.restore(encoded[asked])
        return predicted, targets


def per_position(build: Callable[[int], Encoder], length: int, longer: int) -> list[str]:
    """What an encoder learns for each position, by name: parameters whose shapes depend on its longest input.

    build: ``max_len`` -> the encoder.
    """
    with torch.device("meta"):
        own, other = ({name: p.shape for name, p in build(n).named_parameters()} for n in (length, longer))
    grown = [name for name in own if own[name] != other[name]]
    names = ["learned positions" if name.startswith("positions.") else name.rpartition(".")[2] for name in grown]
    return list(dict.fromkeys(names))


def hide(real: Tensor, share: float) -> Tensor:
    """Which real positions to hide: each with this probability, and at least one in each sample. (B, N) bool."""
    lot = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
    return real & (lot <= lot.amin(1, keepdim=True).clamp(min=share))


def restoring_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of ids; of features the mean absolute error, as in SimMIM."""
    if targets.dtype == torch.int64:
        return F.cross_entropy(predicted.float(), targets)
    return F.l1_loss(predicted.float(), targets)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay (matrices), and without (norms, biases, and what a backend names ``undecayed``)."""
    backends = [module for module in model.modules() if isinstance(module, Backend)]
    named = [(backend, name, p) for backend in backends for name, p in backend.named_parameters()]
    named = [(backend, name.removeprefix("parametrizations."), p) for backend, name, p in named]
    spared = {p for backend, name, p in named if name.split(".")[0] in backend.undecayed}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() >= 2 and p not in spared]
    others = [p for p in trained if p.dim() < 2 or p in spared]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
