"""Models in other formats, written once in transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from fedsa.errors import ModelError, UserError
from fedsa.parts import cache_folder

__all__ = ["converted"]


def converted(folder: Path, on_progress: Callable[[str], None] | None = None) -> Path:
    """Return a folder that transformers loads: the given one, or what its one file of another format was made into.

    A GGUF file's weights are written as the fp32 numbers that they stand for. The result is kept in ``models`` below
    ``$FEDSA_CACHE`` (else ``~/.cache/fedsa``), under the file's name and size.

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
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**given)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{file}: transformers cannot read it: {error}") from error
    model.hf_quantizer, model.is_quantized = None, False  # the numbers are plain ones now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


_READERS: dict[str, Callable[[Path, Path], None]] = {".gguf": _from_gguf}
"""What writes a file of an ending into a folder."""
