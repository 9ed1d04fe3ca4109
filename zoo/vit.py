"""Vision transformers: a picture is cut into patches, which an encoder reads with a class token.

An Image is Worth 16x16 Words, arXiv:2010.11929. ``from_vit`` takes over the weights of ``timm``'s VisionTransformer and
of torchvision's, whichever attention the encoder has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from zoo.contract import at_least
from zoo.embeddings import Positions
from zoo.encoder import Encoder
from zoo.heads import ClassificationHead
from zoo.pretrained import check_fit

EPSILON = 1e-6  # of the norms, as in both packages

# Names of torchvision -> names of timm.
TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.(?:head|0)\.", "head."),
)
# Names of timm -> names of an Encoder and its head.
OURS = (
    (r"^blocks\.(\d+)\.norm", r"encoder.layers.\1.norm"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.attention.mixer.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.attention.mixer.out."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.\1.feed_forward.hidden."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.\1.feed_forward.out."),
    (r"^norm\.", "encoder.norm."),
    (r"^head\.", "head.out."),
)


def patches(images: Tensor, size: int) -> Tensor:
    """Pictures (B, channels, H, W) as patches of ``size`` squared, row by row: (B, N, size² · channels).

    The features of a patch are its pixels, row by row, all channels of each.

    Raises:
        ValueError: a side is no multiple of the size.
    """
    height, width = images.shape[-2:]
    if height % size or width % size:
        raise ValueError(f"expected sides that are multiples of the patch size {size}, got {height} × {width}")
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=size, q=size)


class VisionTransformer(nn.Module):
    """Classes of square pictures. (B, channels, image_size, image_size) -> (B, n_classes).

    Args:
        attn: as for ``Encoder``.
        image_size, patch_size: sides in pixels, the first a multiple of the second.
        channels: of a pixel.
        n_classes: outputs.
        pool: ``cls`` reads the class token, ``mean`` the mean of all patches.
        positions: ``learned`` (with a class token its place is the first), ``learned-2d``, ``rotary-2d`` …
        d_model, n_heads, n_layers, d_ff, dropout: as for ``Encoder``.

    Raises:
        ValueError: sizes that do not fit, or what ``Encoder`` refuses.
    """

    def __init__(
        self,
        attn: object = "full",
        *,
        image_size: int = 224,
        patch_size: int = 16,
        channels: int = 3,
        n_classes: int = 1000,
        pool: Literal["mean", "cls"] = "cls",
        positions: Positions = "learned",
        d_model: int = 768,
        n_heads: int = 12,
        n_layers: int = 12,
        d_ff: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(1, image_size=image_size, patch_size=patch_size, channels=channels, n_classes=n_classes)
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")
        self.patch_size = patch_size
        self.encoder = Encoder(
            attn,
            d_model=d_model,
            n_heads=n_heads,
            n_layers=n_layers,
            d_ff=d_ff,
            dropout=dropout,
            max_len=(image_size // patch_size) ** 2,
            positions=positions,
            class_token=pool == "cls",
            n_features=channels * patch_size**2,
        )
        self.head = ClassificationHead(d_model, n_classes, pool=pool)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(patches(images, self.patch_size)))
        return logits

    @classmethod
    def from_vit(cls, weights: Mapping[str, Tensor], *, n_heads: int, attn: object = "full") -> VisionTransformer:
        """The VisionTransformer with these weights, in evaluation mode.

        With ``attn="full"`` its outputs are theirs; another attention takes all weights, and what it has besides stays
        as constructed.

        Args:
            weights: the ``state_dict`` of timm's or torchvision's, of square pictures, with a class token, learned
                positions, GELU and a linear head.
            n_heads: which no weight shows.

        Raises:
            ValueError: weights of another layout; the message names some.
        """
        named = {renamed(renamed(name, TORCHVISION), OURS): x for name, x in weights.items()}
        try:
            token, positions = named.pop("cls_token"), named.pop("pos_embed")
            kernel, bias = named.pop("patch_embed.proj.weight"), named.pop("patch_embed.proj.bias")
            n_classes, d_ff = len(named["head.out.weight"]), len(named["encoder.layers.0.feed_forward.hidden.weight"])
        except KeyError as error:
            raise ValueError(f"expected the weights of a timm or torchvision ViT, got none named {error}") from None
        d_model, channels, size, _ = kernel.shape
        side = round((positions.shape[1] - 1) ** 0.5)
        model = cls(
            attn,
            image_size=side * size,
            patch_size=size,
            channels=channels,
            n_classes=n_classes,
            d_model=d_model,
            n_heads=n_heads,
            n_layers=len({name.split(".")[2] for name in named if name.startswith("encoder.layers.")}),
            d_ff=d_ff,
        )
        named |= {"encoder.class_token": token.flatten(), "encoder.positions.table": positions[0]}
        named |= {"encoder.features.weight": rearrange(kernel, "o c p q -> o (p q c)"), "encoder.features.bias": bias}
        own = model.state_dict()
        shared = {name: x for name, x in own.items() if name in named or ".attention.mixer.attention." not in name}
        check_fit(shared, named, "the ViT")
        model.load_state_dict(named, strict=False)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = EPSILON
        model.encoder.settings = None  # they do not tell the norms' epsilon
        return model.eval()


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """The name by the first rule that applies."""
    for pattern, replacement in table:
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name
