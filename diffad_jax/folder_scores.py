"""Pictures of a folder, or rows of a file, scored by a trained run: scores.csv, which survives a kill, and heat maps."""

import hashlib
import inspect
import io
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib import colormaps
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from diffad_jax import csv_files
from diffad_jax.data.loading import LOADERS
from diffad_jax.data.pictures import PictureFiles
from diffad_jax.data.row_files import unlabelled
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.files import write_atomically
from diffad_jax.workdir import Statistics, claim

COLUMNS = ("path", "score", "probability", "label")
UNREADABLE = ("path", "cause")
BRIGHTEST = 5  # times the usual error
Files = TypeVar("Files", bound=PictureFiles)


class Counts(NamedTuple):
    """scored: rows in scores.csv; new: those that this call added; anomalous: those with label 1; unreadable: this time."""

    scored: int
    new: int
    anomalous: int
    unreadable: int


def score_folder(
    trained: Trained, root: Path, files: Sequence[Path], out: Path, heat_maps: bool = False, on_error: str = "skip"
) -> Counts:
    """Scores the pictures `files` below `root` in batches, in bounded memory, and leaves alone what `out` holds already.

    Files that have changed since the last call began are scored again; rows of files that are gone stay, and are not counted.

    out/run.json: of which run and folder the scores are, and no other's may come there; its date is that of the last call.
    out/scores.csv: path relative to root; score; probability, see `probability`; label, 1 where the score is above the
    threshold of the training normals. With heat_maps out/heat_maps/<path>.png, see `colours`, as large as the model sees
    pictures. out/unreadable.csv: path and cause of what could not be read this time; the next call tries it again.
    Raises InputError, before anything is written, on a run that has not learnt pictures, or whose score has no maps where
    they are asked for, and where `out` holds another's scores or lies in the folder; and with on_error "fail" (rather than
    "skip") on the first unreadable file, when all before it is on disk.
    """
    check_pictures(trained.config, trained.statistics)
    if heat_maps and not trained.has_maps:
        raise InputError(f"heat maps: the run's score {trained.config.score.name!r} has none, it is one number")
    _claim(out, trained, root)
    names = {file: os.path.relpath(file, root) for file in files}
    begun = time.time_ns()
    stale = _changed_since(out / "run.json", names)
    for name in stale:
        (out / "heat_maps" / f"{name}.png").unlink(missing_ok=True)
    table = ScoreTable(out / "scores.csv", stale)
    os.utime(out / "run.json", ns=(begun, begun))
    before = table.labels_of(names.values())

    def heat_map(file: Path) -> Path:
        return out / "heat_maps" / f"{names[file]}.png"

    pending = [file for file in files if names[file] not in table.labels or (heat_maps and not heat_map(file).exists())]
    pictures = as_trained(trained, pending, Tolerant)
    write_atomically(out / "unreadable.csv", csv_files.lines([UNREADABLE]))
    readings = trained.read(pictures) if pending else iter(())
    done = 0
    with tqdm(total=len(files), initial=len(files) - len(pending), unit="picture", smoothing=0, disable=None) as bar:
        for scores, maps, _ in readings:
            batch = pending[done : done + len(scores)]
            done += len(batch)
            good = np.array([file not in pictures.faults for file in batch])
            if heat_maps:
                for file, map_ in zip(compress(batch, good), colours(trained.statistics, maps[good])):
                    _save_png(heat_map(file), map_)
            table.append((names[file] for file in compress(batch, good)), scores[good], trained.statistics)
            faults = [(names[file], pictures.faults[file]) for file, kept in zip(batch, good) if not kept]
            csv_files.append(out / "unreadable.csv", faults)
            if faults and on_error == "fail":
                raise InputError(f"{root / faults[0][0]}: {faults[0][1]}")
            bar.update(len(batch))
    labels = table.labels_of(names.values())
    return Counts(len(labels), len(labels) - len(before), sum(labels), len(pictures.faults))


def score_rows(trained: Trained, file: Path, out: Path) -> Counts:
    """Scores the rows of a file, see `row_files.unlabelled`: out/scores.csv, whose path is the row's number.

    Raises InputError, naming the file, where it cannot be read, does not fit the run or is not finite, and where `out` holds
    other scores.
    """
    rows, columns = unlabelled(file)
    rows = trained.statistics.arranged(rows, columns, str(file))
    try:  # before anything is written
        trained.statistics.transform.check(rows)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if not len(rows):
        raise InputError(f"{file}: holds no rows")
    _claim(out, trained, file)  # before the work, which another's directory would waste
    scores = trained.score(rows)
    table = _rows(map(str, range(len(rows))), scores, trained.statistics)
    write_atomically(out / "scores.csv", csv_files.lines([COLUMNS, *table]))
    return Counts(len(table), len(table), sum(row[3] for row in table), 0)


def probability(statistics: Statistics, scores: np.ndarray) -> np.ndarray:
    """1 - p, with p = (1 + #{normals that score as high or higher}) / (n + 1): scores [B] -> [B] in [0, 1).

    p is the marginal conformal p-value of Bates et al. 2023 ("Testing for outliers with conformal p-values") for "this is a
    normal". It is no probability of being an anomaly, which depends on how frequent anomalies are: of new normals a share of
    about 1 - c lies above the value c. That share would be exact, were the n normals not among those trained on, which
    makes normals that the model never saw look a little more anomalous. n bounds it: nothing lies above 1 - 1 / (n + 1).
    """
    normals = statistics.normal_scores
    as_high = len(normals) - np.searchsorted(normals, scores, side="left")
    return 1 - (1 + as_high) / (len(normals) + 1)


def colours(statistics: Statistics, maps: np.ndarray) -> np.ndarray:
    """Heat maps [B, H, W] -> uint8 [B, H, W, 3], from black to bright (matplotlib's "magma").

    Black is the mean error of the normals or less, the brightest colour BRIGHTEST times that or, where a picture has more,
    the most that it has: a normal stays dark, and of a large error one sees where it is. BRIGHTEST times the mean lies
    BRIGHTEST - 1 means above it. With a memory it is distances in place of errors.
    """
    usual = (BRIGHTEST - 1) * statistics.judge.usual() or 1.0
    top = np.maximum(maps.max(axis=(1, 2), keepdims=True), usual)
    return np.asarray(colormaps["magma"](np.clip(maps / top, 0, 1), bytes=True))[..., :3]


class Tolerant(PictureFiles):
    """Picture files; one that cannot be read is black, and its cause is noted in `faults`."""

    def __init__(self, files: Sequence[Path], size: int, channels: int, fit: str) -> None:
        super().__init__(files, size, channels, fit)
        self.faults: dict[Path, str] = {}

    def read(self, file: Path) -> np.ndarray:
        try:
            return super().read(file)
        except InputError as error:
            self.faults[file] = str(error).removeprefix(f"{file}: ")
            return np.zeros(self.shape[1:], self.dtype)


def as_trained(trained: Trained, files: Sequence[Path], kind: type[Files]) -> Files:
    """The files, read as the run's training data were: its size and channels, and config.data.fit or its loader's default.

    Where the data came without a fit, as from an `.npz`, the centre is cropped.
    Raises InputError on a run that has not learnt square pictures of values 0 to 255.
    """
    check_pictures(trained.config, trained.statistics)
    shape, config = trained.statistics.transform.shape, trained.config
    return kind(files, shape[0], shape[2], _fit_of(config.get("data", {})))


def check_pictures(config: ConfigDict, statistics: Statistics) -> None:
    """Raises InputError on a run that has not learnt square pictures of values 0 to 255, those of picture files."""
    shape = statistics.transform.shape
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
        raise InputError(f"the run has learnt data of shape {shape}, allowed are pictures (size, size, 1 or 3)")
    ends = config.transform.get("low", 0), config.transform.get("high", 255)
    if ends != (0, 255):
        raise InputError(
            f"the run has learnt values from {ends[0]:g} to {ends[1]:g}, those of picture files are 0 to 255"
        )


def _fit_of(data: ConfigDict | dict[str, Any]) -> str:
    loader = LOADERS.get(data.get("name", ""))
    default = inspect.signature(loader).parameters.get("fit") if loader else None
    return str(data.get("fit", default.default if default else "crop"))


class ScoreTable:
    """scores.csv: rows are on disk when `append` returns. labels: {path: label} of all of them."""

    def __init__(self, path: Path, stale: Collection[str] = ()) -> None:
        """Opens or begins the file; rows of `stale` paths, and what a kill cut short or is damaged otherwise, are dropped.

        Raises InputError on another table.
        """
        self.path = path
        # A path may hold a line break, so that what was cut short may end in one.
        rows = [row for row in csv_files.read(path, COLUMNS) if row[3] in ("0", "1") and row[0] not in stale]
        write_atomically(path, csv_files.lines([COLUMNS, *rows]))
        self.labels = {row[0]: int(row[3]) for row in rows}

    def labels_of(self, paths: Iterable[str]) -> list[int]:
        """The labels of those of the paths that are there."""
        return [self.labels[path] for path in paths if path in self.labels]

    def append(self, paths: Iterable[str], scores: np.ndarray, statistics: Statistics) -> None:
        """Adds a row for each score but for those whose path is there already."""
        new = [row for row in _rows(paths, scores, statistics) if row[0] not in self.labels]
        csv_files.append(self.path, new)
        self.labels |= {row[0]: row[3] for row in new}


def _claim(out: Path, trained: Trained, root: Path) -> None:
    """Makes `out` the place for the scores of one run and one folder or file; run.json tells which, by a hash and a path.

    Raises InputError where `out` holds another's, or lies in the folder, whose pictures its heat maps would then be.
    """
    root = root.resolve()
    if root.is_dir() and out.resolve().is_relative_to(root):
        raise InputError(f"{out}: lies in the folder of pictures {root}, choose another directory of scores")
    # The scores of its normals tell a run from another of the same config.
    run = trained.config.to_json_best_effort(sort_keys=True).encode() + trained.statistics.normal_scores.tobytes()
    identity = {"input": str(root), "sha256": hashlib.sha256(run).hexdigest()[:16]}
    claim(out / "run.json", identity, "scores", "directory of scores")


def _rows(paths: Iterable[str], scores: np.ndarray, statistics: Statistics) -> list[tuple[str, str, str, int]]:
    """The rows of scores.csv. Six digits: the last bits of a score depend on where in a batch its datum stands."""
    chances, labels = probability(statistics, scores), scores > statistics.threshold
    return [(n, f"{s:.6g}", f"{p:.6g}", int(y)) for n, s, p, y in zip(paths, scores, chances, labels, strict=True)]


def _changed_since(stamp: Path, names: Mapping[Path, str]) -> set[str]:
    """The names of the files that have changed since the date of `stamp`, or have come since, whatever their own date."""
    begun = stamp.stat().st_mtime_ns

    def changed(file: Path) -> int:
        status = file.stat()
        return max(status.st_mtime_ns, status.st_ctime_ns)

    return {name for file, name in names.items() if file.exists() and changed(file) > begun}


def _save_png(path: Path, pixels: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
