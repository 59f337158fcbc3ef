"""Arrays of `.npz` archives and `.npy` files, with one line for whatever is wrong with them; large ones stay on disk."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from diffad_jax.errors import InputError, first_line

MAPPED_BYTES = 1 << 29


def read_arrays(path: str | Path, needed: Sequence[str], optional: Sequence[str] | None = ()) -> dict[str, np.ndarray]:
    """Read arrays of an `.npz` file by name, as stored; pickled objects are never loaded. optional: None for all others.

    An array of more than MAPPED_BYTES is given as a memory map: of the file itself, or of an unpacked copy in the folder
    for temporary files, which is gone when the map is.
    Raises InputError when the file is missing, is no zip archive, is damaged, or lacks one that is needed.
    """
    path = Path(path)
    expected = " and ".join(filter(None, (", ".join(needed[:-1]), needed[-1])))
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected an .npz with arrays {expected}")
    path.open("rb").close()  # where it may not be read, is_zipfile says that it is none
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz archive, expected one with arrays {expected}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in needed if key not in archive.files]
            if missing:
                raise InputError(f"{path}: holds {sorted(archive.files)}, array {' and '.join(missing)} is missing")
            wanted = archive.files if optional is None else (*needed, *optional)
            present = [key for key in wanted if key in archive.files]
            large = {f.filename for f in archive.zip.infolist() if f.file_size > MAPPED_BYTES}
            return {k: _mapped(path, archive.zip, k) if f"{k}.npy" in large else archive[k] for k in present}
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as numbers ({first_line(error)})") from error


def read_npy(path: Path) -> np.ndarray:
    """Read the array of an `.npy` file as stored, as a memory map where it is larger than MAPPED_BYTES.

    Raises InputError when the file is missing or damaged, or holds pickled objects.
    """
    try:
        large = path.stat().st_size > MAPPED_BYTES
        found = np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as numbers ({first_line(error)})") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path}: is an .npz archive, name it so")
    return found


def _mapped(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """The array `key` of an .npz archive as a memory map. Reading it once, to its end, lets zipfile check its sum."""
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type == zipfile.ZIP_STORED:
        with archive.open(info) as member:
            while member.read(1 << 24):
                pass
        with path.open("rb") as file:
            # The member follows its local header, whose last two numbers are the lengths of its name and extra field.
            file.seek(info.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
            file.seek(info.header_offset + 30 + name + extra)
            return _map(file)
    with tempfile.TemporaryFile() as file:
        with archive.open(info) as member:
            shutil.copyfileobj(member, file, 1 << 24)
        file.seek(0)
        return _map(file)


def _map(file: IO[bytes]) -> np.ndarray:
    """The .npy array that begins where the file stands."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")
