"""Trains on sequences that no process holds whole.

    torchrun --nproc-per-node 2 examples/split_sequence.py

Every process takes the same batch, and encodes its own part of each sequence.
"""

import os

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from zoo import Encoder
from zoo.heads import ClassificationHead
from zoo.parallel.context import split_sequence


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder("gated_deltanet", d_model=32, n_heads=2, n_layers=2, vocab_size=16, max_len=1024)
        self.head = ClassificationHead(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


def main(steps: int = 3) -> None:
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),), mesh_dim_names=("context",))
    torch.manual_seed(0)
    model = Classifier()
    x = torch.randint(16, (4, 1024))
    split_sequence(model.encoder, mesh)
    torch.manual_seed(1 + mesh.get_local_rank())  # dropout drops other numbers of each piece
    model = DistributedDataParallel(model)  # averages the gradients of the processes
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = F.cross_entropy(model(x), x[:, 0] % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"process {mesh.get_local_rank()}: {1024 // mesh.size()} of 1024 positions, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
