"""Models in other formats, written once in transformers' own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from fedsa.errors import ModelError, UserError
from fedsa.models.opening import no_pickle, own_code
from fedsa.packages.parts import cache_folder

__all__ = ["converted"]


def converted(folder: Path, on_progress: Callable[[str], None] | None = None) -> Path:
    """Return a folder that transformers loads: the given one, or what its one file of another format was made into.

    A GGUF file's weights are written as the fp32 numbers that they stand for, an ONNX file's as they are. The result
    is kept in ``models`` below ``$FEDSA_CACHE`` (else ``~/.cache/fedsa``), under the file's name and size.

    Raises:
        ModelError: the file cannot be read.
        UserError: what reads it is not installed, or the cache cannot be written.
    """
    found = [file for file in sorted(folder.iterdir()) if file.suffix in _READERS] if folder.is_dir() else []
    if len(found) != 1 or (folder / "config.json").exists():
        return folder
    file = found[0]
    ready = cache_folder() / "models" / f"{file.stem}-{file.stat().st_size}"
    if ready.is_dir():
        return ready
    if on_progress is not None:
        on_progress(f"converting {file.name} (once)")
    try:
        ready.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=ready.parent, prefix=f".{file.stem}-", ignore_cleanup_errors=True) as staging:
            made = Path(staging, "ready")
            _READERS[file.suffix](file, made)
            if not ready.is_dir():  # another process may have been first
                made.replace(ready)
    except OSError as error:
        raise UserError(
            f"cannot write {ready}: {error.strerror or error}; make room there or set FEDSA_CACHE to another folder"
        ) from error
    return ready


def _from_gguf(file: Path, target: Path) -> None:
    try:
        import gguf  # noqa: F401 (transformers reads with it)
    except ImportError:
        raise UserError(f"{file.name} needs the package gguf: pip install 'fedsa[gguf]'") from None
    given: Any = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with no_pickle(str(file)):
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(**given, **own_code(), dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**given, **own_code())
    except UserError:
        raise
    except Exception as error:  # of gguf, and whatever a model's own code says to a file it was not written for
        raise ModelError(f"{file}: transformers cannot read it: {error}") from error
    model.hf_quantizer, model.is_quantized = None, False  # the numbers are plain ones now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _from_onnx(file: Path, target: Path) -> None:
    """Write the DINOv2 that is the backbone of an ONNX file, by the names that its published checkpoints have.

    Weights of matrix products have lost their names in the file: they are known by the product's, and are transposed.
    The mask token, which no image needs, is zero.
    """
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise UserError(f"{file.name} needs the package onnx: pip install 'fedsa[vision]'") from None
    try:
        graph = onnx.load(str(file)).graph
    except Exception as error:  # of protobuf's, which is no dependency of this module
        raise ModelError(f"{file}: onnx cannot read it: {error}") from error
    values = {each.name: to_array(each) for each in graph.initializer}
    found = {name.removeprefix(_BACKBONE): value for name, value in values.items() if name.startswith(_BACKBONE)}
    for node in graph.node:
        path = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and path.startswith(_BACKBONE) and node.input[1] in values:
            found[path.removeprefix(_BACKBONE).removesuffix("MatMul") + "weight"] = values[node.input[1]].T
    tensors = {name: torch.from_numpy(value.copy()) for name, value in found.items()}
    cls_token = tensors.get("embeddings.cls_token", torch.empty(1, 1, 0))
    width = cls_token.shape[-1]
    positions = [
        torch.from_numpy(value.copy())
        for name, value in values.items()
        if "." not in name and value.ndim == 3 and value.shape[-1] == width
    ]
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    if len(positions) != 2 or len(tensors) != _TENSORS_OUTSIDE_LAYERS + _TENSORS_OF_A_LAYER * len(layers):
        raise ModelError(f"{file}: of ONNX files only a DINOv2's, called `backbone` in it, can be read")
    tensors["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda each: each.shape[1]), dim=1)
    tensors["embeddings.mask_token"] = torch.zeros(1, width)
    patch = tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // 64,
        mlp_ratio=tensors["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        patch_size=patch,
        image_size=patch * math.isqrt(tensors["embeddings.position_embeddings"].shape[1] - 1),
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(target)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "preprocessor_config.json").write_text(json.dumps(_DINOV2_IMAGES, indent=2), encoding="utf-8")


_BACKBONE = "backbone."
_TENSORS_OUTSIDE_LAYERS, _TENSORS_OF_A_LAYER = 5, 18

_DINOV2_IMAGES = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}
"""What the published DINOv2 models do to an image."""

_READERS: dict[str, Callable[[Path, Path], None]] = {".gguf": _from_gguf, ".onnx": _from_onnx}
"""What writes a file of an ending into a folder."""
