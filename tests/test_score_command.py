"""A folder of pictures in, scores.csv and heat maps out: resumable, in bounded memory, damaged files told."""

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image
from processes import Finished, command, start
from sklearn.metrics import roc_auc_score

from diffad_jax import detector, runs
from diffad_jax.data.folders import labelled_folder, picture_folder
from diffad_jax.data.loading import load
from diffad_jax.data.pictures import PictureFiles, read_picture
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.evaluation import Reading
from diffad_jax.folder_scores import colours, score_folder
from diffad_jax.photos import Tolerant, as_trained, fit_of
from diffad_jax.row_scores import score_rows
from diffad_jax.score_table import Counts, ScoreTable, probability, score_lines
from diffad_jax.scores import Score
from diffad_jax.statistics import Statistics
from diffad_jax.workdir import alone

SIZE = 8


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def stripes(draw: np.random.Generator) -> np.ndarray:
    """A normal: wider than high, so that cropping and stretching differ."""
    return np.clip(np.arange(16)[None, :, None] * 12 + draw.normal(size=(12, 16, 3)) * 20 + 30, 0, 255)


def config_of(folder: Path) -> ConfigDict:
    config = tiny.get_config()
    config.data = {"name": "class_folders", "path": str(folder), "size": SIZE, "normal_class": "stripes"}
    config.data.fit = "stretch"
    config.transform = {"name": "range", "low": 0.0, "high": 255.0}
    config.training.num_steps = 4
    config.scoring = {"batch_size": 4, "calibration_rows": 19}
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    for i in range(38):
        save(folder / "data" / "stripes" / f"{i:02}.png", stripes(draw))
    save(folder / "data" / "noise" / "0.png", draw.integers(0, 256, (12, 16, 3)))
    config = config_of(folder / "data")
    runs.train(config, load(config.data)[0], folder / "work", progress=False)
    return folder / "work"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of several formats and depths, and two files that are none."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    for i in range(7):
        save(folder / f"{i}.png", stripes(draw))
    save(folder / "a, b" / "0.jpg", stripes(draw))
    save(folder / "a, b" / "deep" / "two\nlines.bmp", stripes(draw))
    save(folder / "checks.png", 255 * (np.indices((12, 16)) // 4).sum(axis=0)[..., None].repeat(3, axis=2) % 510)
    (folder / "2b.png").write_bytes((folder / "2.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("no picture")
    for name in ("notes.txt", "a, b/1.HEIC", "2.heic", ".hidden"):
        (folder / name).write_text("not by its name")
    return folder


def rows_of(out: Path, name: str = "scores.csv") -> list[dict[str, str]]:
    with (out / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_scores(out: Path, expected: Path) -> None:
    """Line by line; the last bits of a score may depend on where in a batch its picture stood."""
    found, wanted = rows_of(out), rows_of(expected)
    assert [row["path"] for row in found] == [row["path"] for row in wanted]
    for key in ("score", "probability", "label"):
        np.testing.assert_allclose(*([float(row[key]) for row in rows] for rows in (found, wanted)), rtol=1e-4)


def score(workdir: Path, photos: Path, out: Path, *arguments: str) -> Finished:
    flags = ("--workdir", str(workdir), "--input", str(photos), "--out", str(out))
    return command("experiments.score", *flags, *arguments, output=workdir.parent / "output")


@pytest.fixture(scope="module")
def done(workdir: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    out = tmp_path_factory.mktemp("done") / "scored"
    return out, score(workdir, photos, out, "--heat_maps")


def test_every_picture_gets_the_score_of_its_pixels(workdir: Path, photos: Path, done: tuple[Path, Finished]) -> None:
    out, finished = done
    assert finished.code == 0, finished.err
    trained, rows = detector.load(workdir), rows_of(out)
    names = [str(path.relative_to(photos)) for path in picture_folder(photos)]
    assert [row["path"] for row in rows] == [name for name in names if name not in ("2b.png", "text.jpg")]
    pixels = np.stack([read_picture(photos / row["path"], 3, SIZE, "stretch") for row in rows])
    expected = trained.score(pixels)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-4)
    assert [row["label"] for row in rows] == [str(int(s > trained.statistics.threshold)) for s in expected]
    assert {row["path"]: row["label"] for row in rows}["checks.png"] == "1"
    faults = {row["path"]: row["cause"] for row in rows_of(out, "unreadable.csv")}
    assert set(faults) == {"2b.png", "text.jpg"} and all("cannot be read" in cause for cause in faults.values())
    assert "scored: 10 pictures, 10 of them now" in finished.out and "unreadable: 2" in finished.out
    assert "left out, no pictures by their names: .heic 2, .txt 1\n" in finished.out


def test_heat_maps_are_on_the_scale_of_the_normals_and_beyond_it_on_their_own(
    workdir: Path, photos: Path, done: tuple[Path, Finished]
) -> None:
    out, trained = done[0], detector.load(workdir)
    files = {str(path.relative_to(out / "heat_maps")) for path in (out / "heat_maps").rglob("*") if path.is_file()}
    assert files == {f"{row['path']}.png" for row in rows_of(out)}
    for name in ("checks.png", "0.png"):
        (reading,) = trained.read(read_picture(photos / name, 3, SIZE, "stretch")[None])
        expected = colours(trained.statistics, reading.maps)[0]
        found = np.asarray(Image.open(out / "heat_maps" / f"{name}.png"))
        assert found.shape == (SIZE, SIZE, 3) and np.abs(found.astype(int) - expected).max() <= 2
    statistics, calibration = trained.statistics, trained.statistics.judge
    # One level: the map of an error e is (e - mean) / scale.
    errors = np.array([[0.0, 1.0, 3.0, 5.0, 4.0], [0.0, 1.0, 3.0, 1.0, 4.0], [0.0, 1.0, 3.0, 5.0, 9.0]])
    maps = (errors * float(calibration.mean[0]) - calibration.mean[0]) / calibration.scale[0]
    usual, normal, large = colours(statistics, np.asarray(maps)[:, None])[:, 0].sum(axis=-1, dtype=int)
    assert usual[0] == usual[1] < usual[2] < usual[4] < usual[3]
    assert normal[2] == usual[2] and normal[4] == usual[4], "on the scale of the normals"
    assert large[2] < usual[2] and large[3] < large[4] == usual[3], "an error beyond it on its own"


def test_probability_is_one_minus_the_conformal_p_value_of_the_normals(workdir: Path) -> None:
    statistics = Statistics.load(workdir)
    normals = statistics.normal_scores
    assert len(normals) == 19 and np.mean(normals > statistics.threshold) <= 0.06
    scores = np.array([normals[0] - 1, normals[3], normals[-1], normals[-1] + 1])
    p = [(1 + np.sum(normals >= s)) / 20 for s in scores]
    np.testing.assert_allclose(probability(statistics, scores), 1 - np.array(p), atol=1e-12)
    assert p[0] == 1 and p[3] == 1 / 20


def test_a_second_pass_adds_only_what_is_new_and_tries_again_what_failed(
    workdir: Path, photos: Path, done: tuple[Path, Finished], tmp_path: Path
) -> None:
    trained, folder, out = detector.load(workdir), tmp_path / "photos", tmp_path / "out"
    out.mkdir()
    for name in ("0.png", "1.png"):
        save(folder / name, np.asarray(Image.open(photos / name)))
    (folder / "2.png").write_bytes(b"half")

    def again(heat_maps: bool = False) -> Counts:
        return score_folder(trained, folder, picture_folder(folder), out, heat_maps)

    assert again() == Counts(2, 2, 0, 1)
    before = (out / "scores.csv").read_bytes()
    (folder / "2.png").write_bytes((photos / "2.png").read_bytes())
    assert again() == Counts(3, 1, 0, 0)
    assert (out / "scores.csv").read_bytes().startswith(before) and rows_of(out, "unreadable.csv") == []
    assert again(heat_maps=True) == Counts(3, 0, 0, 0)
    assert len(list((out / "heat_maps").iterdir())) == 3 and len(rows_of(out)) == 3
    reference = {row["path"]: row for row in rows_of(done[0])}
    assert [float(row["score"]) for row in rows_of(out)] == pytest.approx(
        [float(reference[row["path"]]["score"]) for row in rows_of(out)], rel=1e-4
    )


def test_names_as_long_as_file_systems_allow_have_heat_maps_of_their_own(
    workdir: Path, photos: Path, tmp_path: Path
) -> None:
    trained, folder, out = detector.load(workdir), tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    names = [f"{'x' * 250}{i}.png" for i in range(2)] + ["é" * 125 + ".png"]
    for name in names:
        shutil.copy(photos / "0.png", folder / name)
    for new in (3, 0):  # the second time all is found where it was left
        assert score_folder(trained, folder, picture_folder(folder), out, heat_maps=True).new == new
    assert sorted(row["path"] for row in rows_of(out)) == sorted(names)
    maps = {path.name: path.stat().st_mtime_ns for path in (out / "heat_maps").iterdir()}
    assert len(maps) == 3 and all(name.startswith(("x" * 200, "é" * 100)) for name in maps)
    assert all(name.encode() for name in maps), "cut between characters"
    score_folder(trained, folder, picture_folder(folder), out, heat_maps=True)
    assert maps == {path.name: path.stat().st_mtime_ns for path in (out / "heat_maps").iterdir()}


def test_pictures_of_few_levels_are_told_where_they_are_scored(
    workdir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "a.png", np.zeros((12, 12)))
    Image.fromarray(np.linspace(0, 4095, 144).reshape(12, 12).astype(np.uint16)).save(tmp_path / "deep.png")
    with caplog.at_level("WARNING", "absl"):
        as_trained(detector.load(workdir), [tmp_path / "a.png"], PictureFiles)
        assert not caplog.records
        as_trained(detector.load(workdir), [tmp_path / "a.png", tmp_path / "deep.png"], PictureFiles)
    assert "17 grey levels are left" in caplog.text


def test_a_picture_that_was_replaced_is_scored_again_and_one_that_is_gone_not_counted(
    workdir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, folder, out = detector.load(workdir), tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(photos / name, folder / name)
    assert score_folder(trained, folder, picture_folder(folder), out) == Counts(3, 3, 0, 0)
    before = {row["path"]: row["score"] for row in rows_of(out)}
    (folder / "0.png").write_bytes((photos / "checks.png").read_bytes())
    (folder / "2.png").unlink()
    assert score_folder(trained, folder, picture_folder(folder), out) == Counts(2, 1, 1, 0)
    after = {row["path"]: row["score"] for row in rows_of(out)}
    assert float(after["0.png"]) > float(before.pop("0.png")) and before.items() < after.items()
    assert len(rows_of(out)) == 3
    assert score_folder(trained, folder, picture_folder(folder), out).new == 0
    # Another map belongs to another picture.
    assert score_folder(trained, folder, picture_folder(folder), out, heat_maps=True).new == 0
    map_ = out / "heat_maps" / "0.png.png"
    before_it = map_.read_bytes()
    shutil.copy(photos / "2.png", folder / "0.png")
    assert score_folder(trained, folder, picture_folder(folder), out).new == 1 and not map_.exists()
    assert score_folder(trained, folder, picture_folder(folder), out, heat_maps=True).new == 0
    assert map_.read_bytes() != before_it
    # Another picture that is older than the scores, as a copy that keeps its date.
    shutil.copy2(photos / "3.png", tmp_path / "3.png")
    os.utime(tmp_path / "3.png", (1e9, 1e9))
    os.replace(tmp_path / "3.png", folder / "1.png")
    assert score_folder(trained, folder, picture_folder(folder), out).new == 1
    # A kill between the two files that know of a picture.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        shutil.copy(photos / "checks.png", folder / "1.png")
        patch.setattr(ScoreTable, "append", mock.Mock(side_effect=KeyboardInterrupt))
        score_folder(trained, folder, picture_folder(folder), out)
    assert score_folder(trained, folder, picture_folder(folder), out).new == 1
    assert {row["path"]: row["label"] for row in rows_of(out)}["1.png"] == "1"
    # By a clock that is ahead of ours: scored once all the same.
    os.utime(folder / "1.png", (4e9, 4e9))
    assert [score_folder(trained, folder, picture_folder(folder), out).new for _ in range(2)] == [1, 0]


def test_a_picture_that_changes_while_its_folder_is_scored_is_scored_again(
    workdir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, folder, out = detector.load(workdir), tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    shutil.copy(photos / "0.png", folder / "0.png")
    append = ScoreTable.append

    def changing(self: ScoreTable, *arguments: Any) -> None:
        shutil.copy(photos / "checks.png", folder / "0.png")
        append(self, *arguments)

    monkeypatch.setattr(ScoreTable, "append", changing)
    assert score_folder(trained, folder, picture_folder(folder), out) == Counts(1, 1, 0, 0)
    monkeypatch.undo()
    assert score_folder(trained, folder, picture_folder(folder), out) == Counts(1, 1, 1, 0)


def test_rows_of_a_file_are_scored(
    workdir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = detector.load(workdir)
    pictures = np.stack([read_picture(photos / f"{i}.png", 3, 8) for i in range(4)])
    np.save(tmp_path / "rows.npy", pictures)
    np.savez(tmp_path / "rows.npz", X=pictures[::-1])
    for name, expected in (("rows.npy", trained.score(pictures)), ("rows.npz", trained.score(pictures)[::-1])):
        finished = score(workdir, tmp_path / name, tmp_path / f"out_{name}")
        assert finished.code == 0 and "scored: 4 rows" in finished.out, finished
        rows = rows_of(tmp_path / f"out_{name}")
        assert [row["path"] for row in rows] == ["0", "1", "2", "3"]
        np.testing.assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-4)
    spoilt = pictures.astype(np.float32)
    spoilt[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "gap.npy", spoilt)
    finished = score(workdir, tmp_path / "gap.npy", tmp_path / "out_gap")
    assert finished.code == 0 and "scored: 3 rows" in finished.out and "unreadable: 1" in finished.out, finished
    np.testing.assert_allclose(
        [float(row["score"]) for row in rows_of(tmp_path / "out_gap")], trained.score(pictures)[[0, 2, 3]], rtol=1e-4
    )
    assert [row["path"] for row in rows_of(tmp_path / "out_gap")] == ["0", "2", "3"]
    assert (tmp_path / "out_gap" / "unreadable.csv").read_text() == "path,cause\n1,not finite\n"
    strict = score(workdir, tmp_path / "gap.npy", tmp_path / "out_strict", "--on_error=fail")
    assert strict.code == 2 and "gap.npy: transform: 1 of 4 rows are not finite" in strict.err
    np.save(tmp_path / "wide.npy", np.zeros((4, 7)))
    refused = score(workdir, tmp_path / "wide.npy", tmp_path / "out_wide")
    assert refused.code == 2 and "wide.npy: transform: data is float64 (4, 7)" in refused.err
    assert not (tmp_path / "out_wide").exists()
    np.savez(tmp_path / "empty.npz", X=pictures[:0])
    empty = score(workdir, tmp_path / "empty.npz", tmp_path / "out_wide")
    assert empty.code == 2 and "empty.npz: holds no rows" in empty.err and not (tmp_path / "out_wide").exists()

    def worked(*_: Any) -> None:
        raise AssertionError("another's directory wasted the work")

    monkeypatch.setattr(Trained, "score", worked)
    with pytest.raises(InputError, match="out_rows.npz.*holds another run's scores"):
        score_rows(trained, tmp_path / "rows.npy", tmp_path / "out_rows.npz")


def test_what_is_compiled_is_compiled_once_and_far_data_are_most_anomalous(workdir: Path, photos: Path) -> None:
    trained = detector.load(workdir)
    pictures = np.stack([read_picture(photos / f"{i}.png", 3, 8) for i in range(3)]).astype(np.float32)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))

    def reads() -> tuple[np.ndarray, ...]:
        (reading,) = trained.read(pictures)
        return trained.score(pictures), reading.maps, trained.explain(pictures)[2]

    first = reads()
    assert any("backend_compile" in event for event in compiled)
    compiled.clear()
    again = reads()
    assert not any("backend_compile" in event for event in compiled)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    pictures[1] *= 1e30
    scores = trained.score(pictures)
    assert np.isfinite(scores).all() and scores.argmax() == 1 and scores[1] > trained.statistics.threshold


def test_a_model_without_the_statistics_of_its_step_is_refused(workdir: Path, tmp_path: Path) -> None:
    shutil.copytree(workdir, tmp_path / "run")
    statistics = Statistics.load(workdir)
    statistics.facts["step"] += 1
    statistics.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"statistics are of step \d+, and .* delete statistics.npz"):
        detector.load(tmp_path / "run")


def test_a_table_cut_anywhere_is_completed(workdir: Path, photos: Path, tmp_path: Path) -> None:
    trained, files = detector.load(workdir), picture_folder(photos)
    (tmp_path / "one").mkdir()
    score_folder(trained, photos, files, tmp_path / "one")
    whole = (tmp_path / "one" / "scores.csv").read_bytes()
    quoted = whole.index(b'"a, b')
    for cut in (0, 10, quoted + 3, whole.index(b"two\n") + 4, len(whole) - 2):
        out = tmp_path / f"cut at {cut}"
        out.mkdir()
        (out / "scores.csv").write_bytes(whole[:cut])
        score_folder(trained, photos, files, out)
        assert_same_scores(out, tmp_path / "one")


def test_killed_and_started_again_it_ends_as_one_pass(workdir: Path, tmp_path: Path) -> None:
    folder, draw = tmp_path / "photos", np.random.default_rng(2)
    save(folder / "0000.png", stripes(draw))
    for i in range(1, 800):
        os.link(folder / "0000.png", folder / f"{i:04}.png")
    out = tmp_path / "killed"
    flags = ("--workdir", str(workdir), "--input", str(folder), "--out", str(out))
    process = start("experiments.score", *flags, output=tmp_path)
    while process.is_alive() and not ((table := out / "scores.csv").exists() and table.stat().st_size > 500):
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "err").read_text()
    before = len(rows_of(out))
    assert 0 < before < 800
    resumed, once = score(workdir, folder, out), score(workdir, folder, tmp_path / "once")
    assert resumed.code == once.code == 0, resumed.err
    assert_same_scores(out, tmp_path / "once")
    assert f"scored: 800 pictures, {800 - before} of them now" in resumed.out


def test_no_more_than_a_few_batches_are_in_memory(
    workdir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, read, ahead = tmp_path / "photos", tmp_path / "out", Tolerant.read, []
    folder.mkdir()
    out.mkdir()
    for i in range(200):
        shutil.copy(photos / "0.png", folder / f"{i:03}.png")

    def counted(self: Tolerant, file: Path) -> np.ndarray:
        ahead.append(len(ahead) + 1 - (out / "scores.csv").read_bytes().count(b"\n"))
        return read(self, file)

    monkeypatch.setattr(Tolerant, "read", counted)
    assert score_folder(detector.load(workdir), folder, picture_folder(folder), out).scored == 200
    assert len(ahead) == 200 and max(ahead) <= 6 * 4, "pictures read ahead of the rows on disk"


def test_what_is_refused(workdir: Path, photos: Path, done: tuple[Path, Finished], tmp_path: Path) -> None:
    def assert_refused(finished: Finished, *words: str) -> None:
        assert finished.code == 2 and finished.err.startswith("error: ") and len(finished.err.splitlines()) == 1, (
            finished
        )
        assert all(word in finished.err for word in words), finished.err

    out, before = done[0], (done[0] / "scores.csv").read_bytes()
    save(tmp_path / "others" / "0.png", np.zeros((9, 9)))
    refused = score(workdir, tmp_path / "others", out)
    assert_refused(refused, "run.json", "scores.input", str(photos), "choose another directory")
    shutil.copytree(workdir, tmp_path / "other")
    Statistics.load(workdir).save(tmp_path / "other")
    assert score(tmp_path / "other", photos, out).code == 0, "the same run elsewhere"
    statistics = Statistics.load(workdir)
    statistics = replace(statistics, normal_scores=statistics.normal_scores + 1)
    statistics.save(tmp_path / "other")
    assert_refused(score(tmp_path / "other", photos, out), "run.json", "scores.sha256")
    shutil.copytree(workdir, tmp_path / "cropping")
    read = (tmp_path / "cropping" / "config.json").read_text()
    (tmp_path / "cropping" / "config.json").write_text(read.replace('"fit": "stretch"', '"fit": "crop"'))
    assert_refused(score(tmp_path / "cropping", photos, out), "run.json", "scores.sha256")
    assert_refused(score(workdir, photos, photos / "out"), "lies in the folder of pictures")
    assert_refused(score(workdir, tmp_path / "gone", out), "gone", "no such folder")
    assert_refused(score(workdir, photos / "0.png", out), "--input", "0.png is a file", ".npz, .npy and .csv files")
    assert_refused(score(workdir, photos, tmp_path / "why", "--reasons"), "--reasons", str(photos), "is a folder")
    np.save(tmp_path / "rows.npy", np.zeros((2, SIZE, SIZE, 3)))
    of_pictures = score(workdir, tmp_path / "rows.npy", tmp_path / "why", "--reasons")
    assert_refused(of_pictures, "reasons", "has learnt pictures [8, 8, 3]", "allowed are runs of rows")
    assert not (tmp_path / "why").exists()
    with alone(out):
        assert_refused(score(workdir, photos, out), f"{out}: another process works here")
    strict = score(workdir, photos, tmp_path / "strict", "--on_error=fail")
    assert_refused(strict, str(photos / "2b.png"), "cannot be read as a picture")
    assert [row["path"] for row in rows_of(tmp_path / "strict")] == ["0.png", "1.png", "2.png"]
    assert (out / "scores.csv").read_bytes() == before and not (photos / "out").exists()


def test_runs_that_have_learnt_something_else_are_refused(workdir: Path, photos: Path, tmp_path: Path) -> None:
    trained = detector.load(workdir)
    digits = replace(trained, config=tiny.get_config())
    with pytest.raises(InputError, match="values from 0 to 16, those of picture files are 0 to 255"):
        score_folder(digits, photos, [photos / "0.png"], tmp_path)
    blind = Score(lambda *arguments: trained.system.score.maps(*arguments).mean((2, 3)), 1)
    assert trained.has_maps
    with pytest.raises(InputError, match="heat maps: the run's score .* has none"):
        system = trained.system._replace(score=blind)
        score_folder(replace(trained, system=system), photos, [photos / "0.png"], tmp_path, heat_maps=True)
    statistics = Statistics.load(workdir)
    statistics = replace(statistics, transform=statistics.transform._replace(shape=(5,)))
    with pytest.raises(InputError, match="shape \\(5,\\)"):
        score_folder(replace(trained, statistics=statistics), photos, [photos / "0.png"], tmp_path)
    with pytest.raises(InputError, match="data is a list, allowed are NumPy arrays"):
        trained.score([1.0])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_evaluate_reads_a_folder_as_the_training_pictures_were_read(workdir: Path, tmp_path: Path) -> None:
    draw, run, folder = np.random.default_rng(5), tmp_path / "run", tmp_path / "other"
    shutil.copytree(workdir, run)
    config = json.loads((run / "config.json").read_text())
    # Neither another fit than the default of a folder nor the training set, which baselines alone would need.
    config["data"] |= {"fit": "crop", "path": str(tmp_path / "gone")}
    (run / "config.json").write_text(json.dumps(config))
    for i in range(6):
        save(folder / "good" / f"{i}.png", stripes(draw))
        save(folder / "odd" / f"{i}.png", stripes(draw)[..., 0] * (0.8 + 0.1 * i))
    (folder / "good" / "._0.png").write_bytes(b"what a Mac leaves")
    done = command(
        "experiments.evaluate", "--workdir", str(run), f"--data={folder}", "--baselines=", output=tmp_path / "said"
    )
    assert done.code == 0, done.err
    files, labels = labelled_folder(folder)
    scores = {
        fit: detector.load(run).score(np.stack([read_picture(file, 3, SIZE, fit) for file in files]))
        for fit in ("crop", "stretch")
    }
    found = json.loads((run / "metrics_other.json").read_text())
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores["crop"]), abs=1e-6)
    assert roc_auc_score(labels, scores["stretch"]) != pytest.approx(found["auroc"], abs=1e-3)


def test_what_lies_at_the_threshold_is_normal() -> None:
    statistics: Any = SimpleNamespace(threshold=0.5, normal_scores=np.array([0.1, 0.5]))
    assert [row[3] for row in score_lines(["a", "b"], np.array([0.5, 0.6]), statistics)] == [0, 1]


def test_a_damaged_line_is_scored_again(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("path,score,probability,label\na,1,0.5,0\nb,1,0.5,x\n")
    assert ScoreTable(tmp_path / "scores.csv").labels == {"a": 0}


def test_photos_are_fitted_as_the_loader_does_by_default() -> None:
    assert fit_of({"name": "mvtec", "path": "x"}) == "stretch"
    assert fit_of({"name": "mvtec", "fit": "crop"}) == fit_of({"name": "npz"}) == "crop"


def test_heat_maps_are_smoothed_each_by_itself() -> None:
    statistics: Any = SimpleNamespace(transform=SimpleNamespace(view=lambda x: x))
    config = ConfigDict({"scoring": {"smoothing": 1.0, "batch_size": 2}})
    trained = Trained(config, None, None, statistics)  # type: ignore[arg-type]
    trained.__dict__["_readings"] = lambda x: Reading(x.mean(axis=(1, 2)), x, x.mean(axis=(1, 2)))
    pictures = np.stack([np.zeros((6, 6)), np.ones((6, 6))]).astype(np.float32)
    (found,) = trained.read(pictures)
    np.testing.assert_allclose(found.maps, pictures, atol=1e-6)


def test_a_run_scores_in_batches_of_another_size(workdir: Path) -> None:
    trained, small = detector.load(workdir), detector.load(workdir, batch_size=3)
    shape = trained.statistics.transform.shape
    pictures = np.random.default_rng(0).integers(0, 256, (7, *shape)).astype(np.float32)
    np.testing.assert_allclose(small.score(pictures), trained.score(pictures), rtol=1e-4)
    assert [len(part.scores) for part in small.read(pictures)] == [3, 3, 1]
    assert small.config == trained.config


def test_samples_are_drawn_by_seed(workdir: Path) -> None:
    trained = detector.load(workdir)
    one, again, other = (trained.sample(4, 1, seed) for seed in (0, 0, 1))
    assert (one == again).all() and (one != other).any()
    assert 50 < np.median(one) < 205, "raw values, of pictures from 0 to 255"
