"""Picture files of any kind as uint8 arrays, read when they are indexed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from diffad_jax.errors import InputError, check_choice, first_line

PICTURE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FITS = ("crop", "stretch")
ON_ERROR = ("fail", "skip")
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
CHECKED_AT_ONCE = 1024
LOOKED_AT = 8
DEEP = 65535

File = TypeVar("File")


def read_picture(file: str | Path | BinaryIO, channels: int, size: int | None = None, fit: str = "crop") -> np.ndarray:
    """Read the first frame of a picture of any mode, upright by its EXIF orientation, as uint8 [H, W, C] in 0..255.

    channels: 1 (ITU-R 601 luma) or 3.  size: None keeps the pixels; else H = W = size, by antialiased bicubic: fit
    "crop" keeps the aspect (short side to size, then the centre), "stretch" brings each side to size.
    Grey values v of more than 8 bits (modes I;16, I, F) lie on the fixed scale 0..65535 and become round(v / 257), so that
    brightness stays comparable between files. What is transparent shows white, as in a viewer.
    Raises InputError naming the file and the cause: missing, truncated, no picture, or values that are not on that scale.
    """
    _check(size, fit, channels)
    pixels = np.asarray(_resized(_decode(file, channels, "white"), size, fit, Image.Resampling.BICUBIC))
    return pixels.reshape(*pixels.shape[:2], channels)


def read_mask(file: str | Path, size: int | None = None, fit: str = "crop") -> np.ndarray:
    """Read a mask as bool [H, W], True on the defect, placed as `read_picture` places its picture.

    A mask is white on black: 128 and above is defect, so that antialiased edges keep its area. One without any such value
    holds labels, and all but 0 is defect. What is transparent counts as black.
    When pixels are merged, one is True when at least half of it is defect; a defect that covers half of none keeps the
    pixels that it covers most, and does not vanish. Raises InputError as `read_picture` does.
    """
    _check(size, fit)
    values = np.asarray(_decode(file, 3, "black", labels=True)).max(axis=2)
    defect = values >= 128 if (values >= 128).any() else values > 0
    placed = _resized(Image.fromarray(defect.astype(np.float32)), size, fit, Image.Resampling.BOX)
    coverage = np.asarray(placed)
    return (coverage >= min(0.5, coverage.max())) & (coverage > 0)


def header(file: str | Path) -> tuple[bool, tuple[int, int]]:
    """(is grey, (width, height) when upright) by the file's header; a palette counts as colour.

    Raises InputError when the file has no header of a picture.
    """
    try:
        with Image.open(file) as image:
            sideways = image.getexif().get(0x0112) in (5, 6, 7, 8)
            return image.mode.split(";")[0] in GREY_MODES, image.size[::-1] if sideways else image.size
    except Exception as error:  # As in `_decode`.
        raise _unreadable(file, error) from error


def readable(files: Sequence[Path], on_error: str = "fail") -> list[Path]:
    """The files to use: "fail" takes all, and a bad one raises when it is read; "skip" drops what cannot be decoded.

    "skip" decodes every file once, in threads, and logs one warning that counts and names the files that it dropped.
    Another tells of 16-bit files that hold a camera's 10 to 14 bits, of which few levels are left.
    Raises InputError on another `on_error`.
    """
    check_choice("on_error", on_error, ON_ERROR)
    warn_of_few_levels(files)
    if on_error == "fail":
        return list(files)
    faults: list[str | None] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), CHECKED_AT_ONCE):
            faults += pool.map(_fault, files[start : start + CHECKED_AT_ONCE])
    if found := [fault for fault in faults if fault]:
        logging.warning("skipped %d of %d pictures: %s", len(found), len(files), "; ".join(found))
    return [file for file, fault in zip(files, faults) if not fault]


def warn_of_few_levels(files: Sequence[Path]) -> None:
    """Looks at a few files, evenly spaced, and tells of those of more than 8 bits."""
    largest = 0.0
    for file in files[:: max(1, len(files) // LOOKED_AT)]:
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    largest = max(largest, float(np.asarray(image).max()))
        except Exception:  # As in `_decode`, where it is told.
            continue
    if 1 < largest < DEEP / 4:
        logging.warning(
            "%s: pictures of more than 8 bits with values up to %d alone, of %d: %d grey levels are left; multiply them",
            files[0].parent,
            largest,
            DEEP,
            round(largest / 257) + 1,
        )


class Decoded(ABC, Generic[File]):
    """Arrays [N, ...] made of one file each; `dataset.Rows`, and the random access that Grain asks for."""

    dtype: np.dtype

    def __init__(self, files: Sequence[File], shape: tuple[int, ...]) -> None:
        self.files = tuple(files)
        self.shape = (len(self.files), *shape)

    @abstractmethod
    def read(self, file: File) -> np.ndarray: ...

    def bytes_of(self, file: File) -> int | None:
        """How many bytes the file takes, None where that cannot be told."""
        try:
            return file.stat().st_size if isinstance(file, Path) else None
        except OSError:
            return None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, of an int or bool array [n, ...], or one row [...]; decoded in threads."""
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self.read(self.files[int(rows)])
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)

        def fill(place: int) -> None:
            result[place] = self.read(self.files[rows[place]])

        with ThreadPoolExecutor() as pool:
            # The loop passes on the first error.
            for _ in pool.map(fill, range(len(rows))):
                pass
        return result

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All rows at once, which must fit in memory."""
        return self[:] if dtype is None else self[:].astype(dtype)


class PictureFiles(Decoded[Path]):
    """Picture files as uint8 [N, size, size, C], each decoded by `read_picture` when it is indexed."""

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[Path], size: int, channels: int = 3, fit: str = "crop") -> None:
        _check(size, fit, channels)
        super().__init__(files, (size, size, channels))
        self.fit = fit

    def read(self, file: Path) -> np.ndarray:
        return read_picture(file, self.shape[3], self.shape[1], self.fit)


class MaskFiles(Decoded[Path | None]):
    """Mask files as bool [N, size, size], each decoded by `read_mask` when it is indexed; no file, no defect."""

    dtype = np.dtype(np.bool_)

    def __init__(self, files: Sequence[Path | None], size: int, fit: str = "crop") -> None:
        _check(size, fit)
        super().__init__(files, (size, size))
        self.fit = fit

    def read(self, file: Path | None) -> np.ndarray:
        return np.zeros(self.shape[1:], bool) if file is None else read_mask(file, self.shape[1], self.fit)


def _check(size: int | None, fit: str, channels: int = 3) -> None:
    if size is not None and size < 1:
        raise InputError(f"size: found {size}, allowed are pixels from 1")
    check_choice("fit", fit, FITS)
    if channels not in (1, 3):
        raise InputError(f"channels: found {channels}, allowed are 1 and 3")


def _decode(file: str | Path | BinaryIO, channels: int, background: str, labels: bool = False) -> Image.Image:
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                image = _eight_bits(image, labels)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
            return image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Decoders meet damaged files with errors of every class.
        raise _unreadable(file, error) from error


def _eight_bits(image: Image.Image, labels: bool) -> Image.Image:
    """16 bits or more as 8; with `labels` the least value above 0 stays above it."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    # Floats up to 1 or 255 are on another scale: on this one they would be black without a word. A NaN fails every
    # comparison.
    floats = image.mode == "F" and not labels
    if not (low >= 0 and high <= DEEP) or 0 < high < 1 or (floats and 0 < high <= 255):
        scale = f"0 to {DEEP}" + (", and above 255 where they are floats" if floats else "")
        raise ValueError(f"mode {image.mode}, values {low:g} to {high:g}, allowed are {scale}")
    scaled = np.rint(values / 257)
    return Image.fromarray((np.maximum(scaled, values > 0) if labels else scaled).astype(np.uint8))


def _resized(image: Image.Image, size: int | None, fit: str, resample: Image.Resampling) -> Image.Image:
    if size is None:
        return image
    width, height = image.size
    side = min(image.size)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if fit == "crop" else None
    return image.resize((size, size), resample, box)


def _fault(file: Path) -> str | None:
    try:
        _decode(file, 3, "white")
    except InputError as error:
        return str(error)
    return None


def _unreadable(file: str | Path | BinaryIO, error: Exception) -> InputError:
    # Pillow repeats the path in some of its messages, which one line needs once.
    cause = first_line(error).replace(f" {str(file)!r}", "")
    return InputError(f"{file}: cannot be read as a picture ({cause})")
