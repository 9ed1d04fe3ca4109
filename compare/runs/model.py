"""The trained model: an encoder and the head that a task needs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compare.spec import RunSpec
from tasks import IGNORE, Task
from zoo import Encoder, describe
from zoo.contract import Backend
from zoo.heads import ClassificationHead, PairHead, RestoreHead, TokenHead


class Model(nn.Module):
    """An encoder and the head that the task needs."""

    def __init__(self, spec: RunSpec, task: Task) -> None:
        super().__init__()
        self.encoder = Encoder(
            describe(spec.variant).config(**dict(spec.options)),
            d_model=spec.d_model,
            n_heads=spec.n_heads,
            n_layers=spec.n_layers,
            dropout=spec.dropout,
            max_len=spec.max_len,
            norm=spec.norm,  # type: ignore[arg-type]
            activation=spec.activation,  # type: ignore[arg-type]
            positions=spec.positions,  # type: ignore[arg-type]
            conv_width=spec.conv_width,
            embedding_std=spec.embedding_std,
            vocab_size=task.vocab_size,
            n_features=task.n_features,
            causal=spec.is_causal,
            checkpointing=spec.checkpointing,
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
            self.head = ClassificationHead(spec.d_model, task.n_classes)

    def forward(self, inputs: Tensor, targets: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predictions (asked, n_classes) and targets (asked,) of all that the task asks for."""
        if isinstance(self.head, PairHead):
            both = inputs.flatten(0, 1)  # (B, 2, N) -> (2B, N)
            padding = None if padding is None else padding.flatten(0, 1)
            return self.head(self.encoder(both, key_padding_mask=padding), key_padding_mask=padding), targets
        encoded = self.encoder(inputs, key_padding_mask=padding)
        if isinstance(self.head, ClassificationHead):
            return self.head(encoded, key_padding_mask=padding), targets
        asked = targets != IGNORE
        predicted = self.head(encoded)[asked] if isinstance(self.head, RestoreHead) else self.head(encoded[asked])
        return predicted, targets[asked]


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay (matrices), and without (norms, biases, and what a backend names ``undecayed``)."""
    backends = [module for module in model.modules() if isinstance(module, Backend)]
    named = [(backend, name, p) for backend in backends for name, p in backend.named_parameters()]
    spared = {p for backend, name, p in named if name.split(".")[0] in backend.undecayed}
    decayed = [p for p in model.parameters() if p.dim() >= 2 and p not in spared]
    others = [p for p in model.parameters() if p.dim() < 2 or p in spared]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
