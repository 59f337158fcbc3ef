"""Pictures of a folder, scored by a trained run: scores.csv, which survives a kill, and heat maps."""

import hashlib
import io
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from diffad_jax import csv_files
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically
from diffad_jax.photos import Tolerant, as_trained, check_pictures
from diffad_jax.score_table import UNREADABLE, Counts, ScoreTable, scores_in
from diffad_jax.statistics import Statistics

STAMPS = ("path", "stamp")
BRIGHTEST = 5  # times the usual error
LONGEST = 240  # bytes of a name, of which file systems allow 255 and a file that is being written takes some more


def score_folder(
    trained: Trained, root: Path, files: Sequence[Path], out: Path, heat_maps: bool = False, on_error: str = "skip"
) -> Counts:
    """Scores the pictures `files` below `root` in batches, in bounded memory, and leaves alone what `out` holds already.

    Files that are others now, by dates and size, are scored again; rows of files that are gone stay, and are not counted.

    out/run.json: of which run and folder the scores are, and no other's may come there. out/files.csv: dates and size of what
    was scored.
    out/scores.csv: path relative to root; score; probability; label, see `score_table`. With heat_maps
    out/heat_maps/<path>.png, see `colours`, as large as the model sees pictures (a name of more than 240 bytes is cut
    and gets a hash). out/unreadable.csv: path and cause of what could not be read this time; the next call tries it again.
    Raises InputError, before anything is written, on a run that has not learnt pictures, or whose score has no maps where
    they are asked for, and where `out` holds another's scores or lies in the folder; and with on_error "fail" (rather than
    "skip") on the first unreadable file, when all before it is on disk.
    """
    check_pictures(trained.config, trained.statistics)
    if heat_maps and not trained.has_maps:
        raise InputError(f"heat maps: the run's score {trained.config.score.name!r} has none, it is one number")
    with scores_in(out, trained, root):
        return _score_pending(trained, root, files, out, heat_maps, on_error)


def _score_pending(
    trained: Trained, root: Path, files: Sequence[Path], out: Path, heat_maps: bool, on_error: str
) -> Counts:
    """`score_folder` in a directory that is claimed."""
    names = {file: os.path.relpath(file, root) for file in files}
    stamps = {name: _stamp(file) for file, name in names.items() if file.exists()}
    held = dict(csv_files.read(out / "files.csv", STAMPS))
    stale = {name for name, stamp in stamps.items() if held.get(name) != stamp}

    def heat_map(name: str) -> Path:
        path = out / "heat_maps" / name
        return path.with_name(f"{_shortened(path.name)}.png")

    for name in stale:
        heat_map(name).unlink(missing_ok=True)
    table = ScoreTable(out / "scores.csv", stale)
    kept = [line for line in held.items() if line[0] not in stale]
    write_atomically(out / "files.csv", csv_files.lines([STAMPS, *kept]))
    before = table.labels_of(names.values())

    def is_pending(name: str) -> bool:
        return name not in table.labels or (heat_maps and not heat_map(name).exists())

    pending = [file for file in files if is_pending(names[file])]
    pictures = as_trained(trained, pending, Tolerant)
    write_atomically(out / "unreadable.csv", csv_files.lines([UNREADABLE]))
    readings = trained.read(pictures) if pending else iter(())
    done = 0
    for scores, maps, _ in readings:
        batch = pending[done : done + len(scores)]
        done += len(batch)
        good = np.array([file not in pictures.faults for file in batch])
        if heat_maps:
            for file, map_ in zip(compress(batch, good), colours(trained.statistics, maps[good]), strict=True):
                _save_png(heat_map(names[file]), map_)
        told = [names[file] for file in compress(batch, good)]
        csv_files.append(out / "files.csv", [(name, stamps.get(name, "")) for name in told])
        table.append(told, scores[good], trained.statistics)
        faults = [(names[file], pictures.faults[file]) for file, kept in zip(batch, good) if not kept]
        csv_files.append(out / "unreadable.csv", faults)
        if faults and on_error == "fail":
            raise InputError(f"{root / faults[0][0]}: {faults[0][1]}")
    labels = table.labels_of(names.values())
    return Counts(len(labels), len(labels) - len(before), sum(labels), len(pictures.faults))


def colours(statistics: Statistics, maps: np.ndarray) -> np.ndarray:
    """Heat maps [B, H, W] -> uint8 [B, H, W, 3], from black to bright (matplotlib's "magma").

    Black is the mean error of the normals or less, the brightest colour BRIGHTEST times that or, where a picture has more,
    the most that it has: a normal stays dark, and of a large error one sees where it is. BRIGHTEST times the mean lies
    BRIGHTEST - 1 means above it. With a memory it is distances in place of errors.
    """
    usual = (BRIGHTEST - 1) * statistics.judge.heat_of_usual_error() or 1.0
    top = np.maximum(maps.max(axis=(1, 2), keepdims=True), usual)
    return np.asarray(colormaps["magma"](np.clip(maps / top, 0, 1), bytes=True))[..., :3]


def _stamp(file: Path) -> str:
    """What tells a file from another of its name, whatever the clocks of the machines say that have written them."""
    status = file.stat()
    return f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_size}"


def _shortened(name: str) -> str:
    """The name, or where no more could be added to it its beginning and a hash."""
    content = os.fsencode(name)
    if len(content) <= LONGEST:
        return name
    return f"{content[: LONGEST - 17].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}"


def _save_png(path: Path, pixels: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
