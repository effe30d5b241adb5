"""Tiny random vision models with their image processors, in the hub's own format, and folders of pictures for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

SIDE = 12
CLASSES = ("circle", "cross", "square")
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": SIDE}


def write_vit(folder: Path) -> Path:
    """Write a ViT, whose images are squeezed into a square; its weights are large, so that every layer matters."""
    torch.manual_seed(0)
    config = ViTConfig(**_SIZES, intermediate_size=32, initializer_range=0.3)
    ViTForImageClassification(config).vit.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_dinov2(folder: Path) -> Path:
    """Write a DINOv2, whose images are the middle of what is given, and of any size."""
    torch.manual_seed(0)
    config = Dinov2Config(**_SIZES, mlp_ratio=2, initializer_range=0.3)
    Dinov2ForImageClassification(config).dinov2.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size={"shortest_edge": SIDE + 4}, crop_size=square).save_pretrained(folder)
    return folder


def write_swin(folder: Path) -> Path:
    """Write a Swin, whose layers have windows of images."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    SwinForImageClassification(SwinConfig(**sizes, initializer_range=0.3)).swin.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def picture(rng: np.random.Generator, label: int, tint: Sequence[float], side: int = 20) -> Image.Image:
    """Return a noisy picture whose shape tells its class, and whose colour its domain."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    shape = (np.hypot(x, y) < 0.6, (abs(x) < 0.2) | (abs(y) < 0.2), np.maximum(abs(x), abs(y)) < 0.6)[label % 3]
    values = 60 * rng.random((side, side, 3)) + 190 * shape[..., None] * np.asarray(tint)
    return Image.fromarray(values.astype(np.uint8))


def write_pictures(
    folder: Path, domains: Sequence[str], classes: Sequence[str] = CLASSES, each: int = 8, side: int = 20
) -> Path:
    """Write pictures as DOMAIN/CLASS/*.png."""
    rng = np.random.default_rng(0)
    for number, domain in enumerate(domains):
        tint = np.roll((1.0, 0.6, 0.2), number)
        for label, name in enumerate(classes):
            place = folder / domain / name
            place.mkdir(parents=True)
            for copy in range(each):
                picture(rng, label, tint, side).save(place / f"{copy}.png")
    return folder
