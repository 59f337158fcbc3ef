"""Files that appear whole or not at all: bytes, JSON and `.npz`."""

import io
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffad_jax.errors import InputError, unusable


def slug(name: str) -> str:
    """A name as part of a file's: in lower case, a dash in place of all but letters, digits and underscores."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


@contextmanager
def folder(path: Path, kind: str = "folder") -> Iterator[None]:
    """Makes a folder, or finds it, for what is read and written there inside the `with`.

    Raises InputError, which calls it a `kind`, where it or a file in it cannot be made, read or written; RunFailed where a
    disk is full or broken.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise unusable(f"{path}: cannot be a {kind}", error) from error


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes to a temporary name of its own beside `path`, then renames: the file appears whole or not at all."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        if error.errno and not error.filename:  # as where the disk is full
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value`, whose numbers are finite, as indented JSON."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz of arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getbuffer())


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; raises InputError where it is damaged."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: is damaged, no JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: is damaged, found {type(found).__name__}, expected an object")
    return found
