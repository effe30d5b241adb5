"""Classification of images."""

from __future__ import annotations

import hashlib
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch

from fedsa.errors import DataError, ModelError
from fedsa.tasks.base import IntArray
from fedsa.tasks.cache import cached_arrays
from fedsa.tasks.classes import ClassTask
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

    from fedsa.recipe import ImageClassificationSettings, OwnTaskSettings

__all__ = ["ImageClassification", "ImageRows", "opened"]

_READ_ROWS = 64  # images read at once
_HASHED_BYTES = 1 << 24
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
"""Pillow's modes of one channel with more than a byte."""


@final
@dataclass(frozen=True)
class ImageRows:
    """Images of one size, as the bytes that they are resized to; a batch is normalised when it is asked for.

    Attributes:
        pixels: shape (used rows, 3, side, side), uint8.
        places: shape (rows,): where a row's image is in ``pixels``; -1: it is not used.
        labels: shape (rows,): class numbers.
        tokens: of each image.
        factor: what a pixel's byte is multiplied by, shape (3, 1, 1).
        shift: what is added after that, the same shape.
        notes: sentences on the images.
    """

    pixels: npt.NDArray[np.uint8]
    places: IntArray
    labels: IntArray
    tokens: int
    factor: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]
    notes: tuple[str, ...] = ()

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row."""
        return np.where(self.places < 0, 0, self.tokens)

    def fingerprint(self) -> str:
        """Return a hash of pixels, their normalisation and labels."""
        digest = hashlib.sha256()
        for array in (self.places.astype("<i8"), self.labels.astype("<i8"), self.factor, self.shift):
            digest.update(array.tobytes())
        flat = self.pixels.reshape(-1)
        for start in range(0, len(flat), _HASHED_BYTES):
            digest.update(flat[start : start + _HASHED_BYTES].tobytes())
        return digest.hexdigest()

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return ``pixel_values``, ``labels``, and an ``attention_mask`` of ones: that many tokens there are."""
        rows = np.asarray(rows)
        return {
            "pixel_values": torch.from_numpy(self.pixels[self.places[rows]] * self.factor + self.shift),
            "attention_mask": torch.ones(len(rows), self.tokens, dtype=torch.int64),
            "labels": torch.from_numpy(self.labels[rows]),
        }


@final
@dataclass(frozen=True)
class ImageClassification(ClassTask):
    """Cross-entropy on class logits; the metric is accuracy. Images are not augmented.

    A file's picture is the one that ``datasets`` and transformers' own image loading give: its first frame, turned as
    its EXIF note says, with three colours of a byte each.

    Attributes:
        image_column: the column of the image.
        label_names: class names in order of their number.
    """

    image_column: str
    label_names: tuple[str, ...]

    auto_model: ClassVar[str] = "AutoModelForImageClassification"
    peft_task_type: ClassVar[str | None] = None
    pipeline_tag: ClassVar[str] = "image-classification"
    takes_images: ClassVar[bool] = True

    @classmethod
    def from_settings(
        cls, settings: ImageClassificationSettings | OwnTaskSettings, label_names: Sequence[str]
    ) -> ImageClassification:
        """Return the task of a recipe's ``[task]``."""
        return cls(settings.text_columns[0], tuple(label_names))

    def encode(
        self, table: Dataset, rows: IntArray, tokenizer: Any, *, limit: int | None = None, answered: bool = True
    ) -> ImageRows:
        """Return ``rows`` of ``table`` as pixels of the size that the image processor makes.

        What an image is resized to is kept on disk, under a hash of the files' bytes and of the processor's settings.
        Of images without answers nothing is kept.

        Args:
            table: all rows.
            rows: the row numbers that are used.
            tokenizer: an image processor.
            limit: the tokens that the model makes of an image.
            answered: as for `Task.encode`.

        Raises:
            DataError: the column has no images, or one that cannot be read.
            ModelError: the processor does more than resize, cut, rescale and normalise.
        """
        import datasets

        if not isinstance(table.features[self.image_column], datasets.Image):
            raise DataError(
                f"column {self.image_column!r} holds {table.features[self.image_column]}, not images: name the column "
                "of the image in task.text_columns, or store the rows with the feature datasets.Image"
            )
        rows = np.unique(rows)
        table = table.cast_column(self.image_column, datasets.Image(decode=False))
        make = partial(self._resize, table, rows, tokenizer)
        arrays = cached_arrays(self._key(table, rows, tokenizer), make) if answered else make()
        factor, shift = _normalisation(tokenizer)
        first = next(self._images(table, rows[:1]))[1][0]
        whole = tokenizer(opened(first)[0], return_tensors="np")["pixel_values"][0]
        if not np.allclose(arrays["pixels"][0] * factor + shift, whole, atol=1e-5):
            raise ModelError(
                f"{type(tokenizer).__name__} does more to an image than to resize, cut, rescale and normalise it, "
                "and fedsa does no more than that: use another model"
            )
        places = np.full(len(table), -1, dtype=np.int64)
        places[rows] = np.arange(len(rows))
        labels = np.asarray(table[CLASS_NUMBER][:], dtype=np.int64)
        return ImageRows(arrays["pixels"], places, labels, limit or 1, factor, shift, _notes(arrays["deep"]))

    def _key(self, table: Dataset, rows: IntArray, processor: Any) -> str:
        """Return a hash of the images' files and of what is made of them."""
        digest = hashlib.sha256(f"upright\0{processor.to_json_string()}".encode())
        for _, images in self._images(table, rows):
            for image in images:
                digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()

    def _images(self, table: Dataset, rows: IntArray) -> Iterator[tuple[IntArray, list[bytes]]]:
        """Yield some row numbers at a time, and the bytes of their images' files."""
        for start in range(0, len(rows), _READ_ROWS):
            part = rows[start : start + _READ_ROWS]
            cells = table[part][self.image_column]
            yield part, [self._bytes(row, cell) for row, cell in zip(part.tolist(), cells, strict=True)]

    def _bytes(self, row: int, cell: Mapping[str, Any] | None) -> bytes:
        """Return the bytes of a row's file.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        where = f"row {row}: column {self.image_column!r}"
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise DataError(f"{where} has no image: leave such rows out")
        try:
            return cell["bytes"] or Path(cell["path"]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{where}: the image {cell['path']} cannot be read: {error.strerror}; correct the row or leave it out"
            ) from error

    def _resize(self, table: Dataset, rows: IntArray, processor: Any) -> dict[str, npt.NDArray[np.uint8]]:
        """Return ``pixels`` as `ImageRows` has them, in a file: there may be more than fits into memory.

        Beside them ``deep``, shape (used rows,): 1 where a picture has pixels that a byte does not hold.
        """
        pixels: npt.NDArray[np.uint8] = np.empty((0, 3, 0, 0), dtype=np.uint8)
        deep = np.zeros(len(rows), dtype=np.uint8)
        with TemporaryFile() as file:
            for part, images in self._images(table, rows):
                pictures = [self._open(row, image, table) for row, image in zip(part.tolist(), images, strict=True)]
                deep[np.searchsorted(rows, part)] = [is_deep for _, is_deep in pictures]
                made = processor(
                    [picture for picture, _ in pictures], do_rescale=False, do_normalize=False, return_tensors="np"
                )["pixel_values"]
                if not len(pixels):
                    pixels = np.memmap(file, dtype=np.uint8, mode="w+", shape=(len(rows), *made.shape[1:]))
                start = int(np.searchsorted(rows, part[0]))
                pixels[start : start + len(part)] = made
        return {"pixels": pixels, "deep": deep}

    def _open(self, row: int, image: bytes, table: Dataset) -> tuple[Any, bool]:
        """The picture in a row's file, as `opened` reads it.

        Raises:
            DataError: it is no picture, a damaged one, or one too large to be opened safely.
        """
        try:
            return opened(image)
        except Exception as error:  # the reader of each format fails in its own way
            path = table[row][self.image_column]["path"]
            reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...").rstrip(".")
            reason = re.sub(r" ?<_io\.BytesIO object at \w+>", "", reason)
            raise DataError(
                f"row {row}: column {self.image_column!r} holds no image that can be read"
                f"{f' ({path})' if path else ''}: {reason}; repair it, make it smaller, or leave the row out"
            ) from error

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits in fp32 at least, shape (rows, classes)."""
        logits: Tensor = model(pixel_values=batch["pixel_values"]).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of black images."""
        return {"pixel_values": torch.zeros(rows, 3, size, size)}


def opened(image: bytes) -> tuple[Any, bool]:
    """Return a file's picture as transformers opens it: upright, with three colours; and whether it is deep.

    A deep picture has pixels that a byte does not hold (16 bits, parts of one): they are cut to it, here as there.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # A large picture is opened as far as Pillow opens it; what is transparent has the colour under it; a note that
        # Pillow cannot read is none.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        file = Image.open(BytesIO(image))
        file.load()
        picture = ImageOps.exif_transpose(file)
        return picture.convert("RGB"), picture.mode in _DEEP and _is_deep(np.asarray(picture))


def _is_deep(values: npt.NDArray[Any]) -> bool:
    highest = float(values.max())
    return highest > 255 or 0 < highest <= 1


def _notes(deep: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    count = int(deep.sum())
    if not count:
        return ()
    return (
        f"{count:,} of {counted(len(deep), 'image')} have pixels of 16 bits, or from 0 to 1, of which the whole "
        "numbers from 0 to 255 are kept, as wherever transformers opens them: write them with 8 bits.",
    )


def _normalisation(processor: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The factor and the offset that a processor applies to bytes, each of shape (3, 1, 1)."""
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    means, deviations = (
        (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    )
    mean, deviation = (np.asarray(each, dtype=np.float64).reshape(-1, 1, 1) for each in (means, deviations))
    return (scale / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)
