"""Pictures: patches, positions of rows and columns, the class token, and weights of other packages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import Encoder, describe
from zoo.contract import Mixer, UnsupportedError
from zoo.embeddings import Learned2DPositions, RotaryPositions, grid_of
from zoo.vit import VisionTransformer, patches

C, HEADS, LAYERS, SIZE, SIDE, CLASSES = 16, 2, 2, 4, 3, 5


def timm_weights() -> dict[str, Tensor]:
    """Random weights in the layout of timm's VisionTransformer."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, C),
        "pos_embed": (1, SIDE**2 + 1, C),
        "patch_embed.proj.weight": (C, 3, SIZE, SIZE),
        "patch_embed.proj.bias": (C,),
        "norm.weight": (C,),
        "norm.bias": (C,),
        "head.weight": (CLASSES, C),
        "head.bias": (CLASSES,),
    }
    for n in range(LAYERS):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{n}.{norm}.weight": (C,), f"blocks.{n}.{norm}.bias": (C,)}
        for linear, (out, into) in {
            "attn.qkv": (3 * C, C),
            "attn.proj": (C, C),
            "mlp.fc1": (4 * C, C),
            "mlp.fc2": (C, 4 * C),
        }.items():
            shapes |= {f"blocks.{n}.{linear}.weight": (out, into), f"blocks.{n}.{linear}.bias": (out,)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def torchvision_weights() -> dict[str, Tensor]:
    """The same weights in the layout of torchvision's."""
    names = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj": "conv_proj",
        "norm": "encoder.ln",
        "head": "heads.head",
    }
    parts = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    weights = {}
    for name, x in timm_weights().items():
        stem, _, kind = name.rpartition(".")
        if name.startswith("blocks."):
            _, n, part = stem.split(".", 2)
            layer = f"encoder.layers.encoder_layer_{n}"
            new = f"{layer}.self_attention.in_proj_{kind}" if part == "attn.qkv" else f"{layer}.{parts[part]}.{kind}"
        else:
            new = names[name] if name in names else f"{names[stem]}.{kind}"
        weights[new] = x
    return weights


def reference(images: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The vision transformer as its paper writes it, equations 1 to 4."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=SIZE).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), 1, C), x], dim=1) + w["pos_embed"]
    for n in range(LAYERS):
        q, k, v = linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
        mixed = (q @ k.mT * (C // HEADS) ** -0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"blocks.{n}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1")), f"blocks.{n}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


@pytest.mark.parametrize("weights", [timm_weights, torchvision_weights])
def test_weights_of_other_packages_give_their_outputs(weights: Any) -> None:
    model = VisionTransformer.from_vit(weights(), n_heads=HEADS)
    images = torch.randn(2, 3, SIDE * SIZE, SIDE * SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images, timm_weights()), rtol=1e-4, atol=1e-5)


def test_every_attention_behind_the_shell_takes_the_weights(name: str) -> None:
    if issubclass(describe(name).cls, Mixer):
        with pytest.raises(ValueError, match="the ViT does not fit"):
            VisionTransformer.from_vit(timm_weights(), n_heads=HEADS, attn=name)
        return
    if describe(name).traits.shared_qk:
        with pytest.raises(ValueError, match=r"qkv\.weight has shape \(48, 16\), expected \(32, 16\)"):
            VisionTransformer.from_vit(timm_weights(), n_heads=HEADS, attn=name)
        return
    model = VisionTransformer.from_vit(timm_weights(), n_heads=HEADS, attn=name)
    images = torch.randn(2, 3, SIDE * SIZE, SIDE * SIZE)
    assert model(images).shape == (2, CLASSES)


def test_weights_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match="expected the weights of a timm or torchvision ViT, got none named 'cls_token'"
    ):
        VisionTransformer.from_vit({"a": torch.ones(2)}, n_heads=2)
    weights = timm_weights()
    weights["blocks.1.norm1.weight"] = torch.ones(C + 1)
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.norm1\.weight has shape \(17,\), expected \(16,\)"):
        VisionTransformer.from_vit(weights, n_heads=2)


def test_patches_are_pixels_row_by_row() -> None:
    image = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    cut = patches(image, 2)
    assert cut.shape == (1, 4, 8)
    assert cut[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23], "both channels of each pixel of the upper right"
    with pytest.raises(ValueError, match="multiples of the patch size 3, got 4 × 4"):
        patches(image, 3)


def test_a_class_token_sees_all_and_counts_as_no_position_of_the_input(name: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(name, d_model=16, n_heads=2, n_layers=2, max_len=16, vocab_size=9, class_token=True).eval()
    ids = torch.randint(1, 9, (2, 12))
    y = encoder(ids)
    assert y.shape == (2, 13, 16)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 3) % 9
    if name != "none":
        assert not torch.allclose(encoder(changed)[:, 0], y[:, 0])
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 4:8] = True
    spread = torch.ones(2, 16, dtype=torch.long)
    spread[~mask] = ids.flatten()
    padded = encoder(spread, key_padding_mask=mask)
    assert padded.shape == (2, 17, 16)
    if "padding" not in " ".join(describe(name).traits.exceptions):
        torch.testing.assert_close(padded[:, :5], y[:, :5], rtol=1e-3, atol=2e-4)
    assert padded[:, 5:9].count_nonzero() == 0


def test_positions_of_rows_and_columns() -> None:
    learned = Learned2DPositions(10, 6)
    x = learned(torch.zeros(1, 10, 6))[0]
    assert learned.first is not None
    torch.testing.assert_close(x[0], learned.first[0])
    torch.testing.assert_close(x[1 + 2 * 3 + 1], torch.cat([learned.row[2], learned.column[1]]))
    turn = RotaryPositions(9, 8, flat=False)
    q = torch.randn(8)
    q, k = q.expand(1, 1, 9, 8), torch.randn(8).expand(1, 1, 9, 8)
    logits = (turn(q) @ turn(k).mT)[0, 0].reshape(3, 3, 3, 3)
    torch.testing.assert_close(
        logits[0, 0, 1, 1], logits[1, 1, 2, 2], msg="only the distance counts, in both directions"
    )
    assert not torch.allclose(logits[0, 0, 1, 0], logits[0, 0, 0, 1]), "rows and columns turn other features"
    lead = RotaryPositions(10, 8, flat=False)
    torch.testing.assert_close(lead(torch.ones(1, 1, 10, 8))[0, 0, 0], torch.ones(8))


@pytest.mark.parametrize("length", [2, 9, 10, 16, 17])
def test_grids(length: int) -> None:
    side, lead = grid_of(length)
    assert side**2 + lead == length
    with pytest.raises(ValueError, match=r"n² \(n² \+ 1 with a class token\), got 12"):
        grid_of(12)


@pytest.mark.parametrize("positions", ["learned-2d", "rotary-2d", "learned", "sinusoidal"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pictures_are_learned_from(positions: Any, pool: Any) -> None:
    """Gradients reach every parameter, with each kind of positions and pooling."""
    model = VisionTransformer(
        "full", image_size=8, patch_size=2, channels=1, n_classes=3, pool=pool, positions=positions, d_model=16,
        n_heads=2, n_layers=1,
    )  # fmt: skip
    F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 10, "patch_size": 4}, "image_size must be a multiple of patch_size, got 10 and 4"),
        ({"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VisionTransformer(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a causal encoder cannot have a class token"):
        Encoder(class_token=True, causal=True)
    with pytest.raises(ValueError, match="rotary positions of a picture need d_head a multiple of 4, got 2"):
        Encoder(d_model=4, n_heads=2, max_len=16, positions="rotary-2d", n_layers=1)


@pytest.mark.parametrize("positions", ["learned-2d", "rotary-2d"])
def test_a_picture_of_another_size_is_refused(positions: Any) -> None:
    encoder = Encoder(d_model=16, n_heads=2, n_layers=1, max_len=16, vocab_size=9, positions=positions)
    with pytest.raises(UnsupportedError, match=r"expected a picture of 16 positions \(max_len\), got 9"):
        encoder(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("positions", ["learned-2d", "rotary-2d"])
def test_steps_know_rows_and_columns(positions: Any) -> None:
    encoder = Encoder(
        d_model=16, n_heads=2, n_layers=1, max_len=16, vocab_size=9, positions=positions, causal=True
    ).eval()
    ids, state = torch.arange(16)[None] % 9, None
    for token in ids.unbind(1):
        y, state = encoder.step(token, state)
    torch.testing.assert_close(y, encoder(ids)[:, -1])
