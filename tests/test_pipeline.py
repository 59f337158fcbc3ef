"""The input pipeline: the order of the rows, flips, shares of processes, and rows that are read from disk when asked for."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from PIL import Image

from diffad_jax import baselines, detector, metrics, runs, settings, workdir
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Dataset, evenly_spaced, fingerprint
from diffad_jax.data.pictures import PictureFiles
from diffad_jax.data.pipeline import Batches, Pipeline, batch_rows, read_ahead
from diffad_jax.errors import InputError
from diffad_jax.statistics import Statistics
from diffad_jax.training import Params

SIZE, COUNT = 8, 29
PIPELINE = Pipeline()
PICTURES = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 1), np.uint8)


@dataclass
class Jpegs:
    """Pictures that are decoded when they are indexed; at most `at_once` of them."""

    files: Sequence[Path]
    at_once: int = 64
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), SIZE, SIZE, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        chosen = np.arange(len(self))[index]
        assert len(chosen) <= self.at_once, f"read {len(chosen)} rows at once"
        return np.stack([np.asarray(Image.open(self.files[i]))[..., None] for i in chosen])

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        return self[:]


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Jpegs:
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / f"{i}.jpg" for i in range(COUNT)]
    for file, picture in zip(files, PICTURES, strict=True):
        Image.fromarray(picture[..., 0]).save(file)
    return Jpegs(files)


def read(batches: Batches, pipeline: Pipeline = PIPELINE) -> list[np.ndarray]:
    with read_ahead(batches, pipeline) as stream:
        return [np.array(x) for x in stream]


# --- the order of the rows -------------------------------------------------------------------------------------------


def test_every_epoch_is_another_permutation_of_all_rows() -> None:
    epochs = batch_rows(seed=0, num_rows=13, start=0, count=3 * 13).reshape(3, 13)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(13), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (batch_rows(seed=1, num_rows=13, start=0, count=13) != epochs[0]).any()


def test_any_part_of_the_stream_can_be_read_alone() -> None:
    whole = batch_rows(seed=5, num_rows=13, start=0, count=100)
    for first, count in ((0, 1), (7, 40), (12, 2), (26, 13), (99, 1)):
        np.testing.assert_array_equal(batch_rows(5, 13, first, count), whole[first : first + count])


def test_a_batch_of_a_million_rows_costs_no_permutation_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    draw = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: [drawn.append(seed), draw(seed)][1])
    for step in range(50):
        batch_rows(seed=77, num_rows=1_000_000, start=step * 64, count=64)
    assert len(drawn) == 1


@pytest.mark.parametrize("workers", [0, 1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_stream_reads_on_wherever_it_stopped(jpegs: Jpegs, workers: int) -> None:
    """Over epochs, with threads or worker processes, in portions that do not divide the steps."""
    rows = transforms.fit("range", jpegs, low=0, high=255).view(jpegs)
    decoded = jpegs[:].astype(np.float32) / 127.5 - 1
    expected = decoded[batch_rows(3, COUNT, 0, 11 * 8)].reshape(11, 8, SIZE, SIZE, 1)
    batches = Batches(rows, seed=3, batch_size=8, start=5, num_steps=11, steps_per_dispatch=4, flip=False)
    found = read(batches, Pipeline(workers=workers))
    assert [len(x) for x in found] == [4, 2] and found[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(found), expected[5:], atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_processes_share_each_batch(flip: bool) -> None:
    whole = Batches(PICTURES, 0, 12, 0, 5, 2, flip)
    shares = [read(replace(whole, own=slice(i, i + 4))) for i in (0, 4, 8)]
    for item, *parts in zip(read(whole), *shares, strict=True):
        assert [part.shape[1] for part in parts] == [4, 4, 4]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), item)


def test_flips_mirror_half_of_the_pictures_and_depend_on_the_place_alone() -> None:
    plain = np.concatenate(read(Batches(PICTURES, 0, 16, 0, 40)))
    flipped = np.concatenate(read(Batches(PICTURES, 0, 16, 0, 40, 7, flip=True)))
    mirrored = (flipped != plain).any(axis=(2, 3, 4))
    np.testing.assert_array_equal(np.where(mirrored[..., None, None, None], plain[..., ::-1, :], plain), flipped)
    assert 0.45 < mirrored.mean() < 0.55
    # Along the places of a batch and from step to step: neither the same ones each time nor all at once.
    assert (
        mirrored.mean(axis=0).min() > 0.2
        and mirrored.mean(axis=0).max() < 0.8
        and len(np.unique(mirrored, axis=0)) == 40
    )
    later = np.concatenate(read(Batches(PICTURES, 0, 16, 23, 40, 2, flip=True)))
    np.testing.assert_array_equal(later, flipped[23:])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_vanished_is_named(jpegs: Jpegs, tmp_path: Path, workers: int) -> None:
    gone = shutil.copy(jpegs.files[0], tmp_path / "gone.jpg")
    pictures = PictureFiles([*jpegs.files[:5], gone], SIZE, 1)
    rows = transforms.fit("range", pictures, low=0, high=255).view(pictures)
    gone.unlink()
    with pytest.raises(InputError, match=f"^{gone}: cannot be read as a picture"):
        read(Batches(rows, 0, 6, 0, 50), Pipeline(workers=workers))


# --- rows on disk ----------------------------------------------------------------------------------------------------

OPTIONS = {"range": {"low": 0, "high": 255}, "standardise": {}, "whiten": {}}


@pytest.mark.parametrize("name", OPTIONS)
def test_transforms_of_rows_on_disk_are_those_of_the_array(
    jpegs: Jpegs, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = jpegs[:]
    monkeypatch.setattr("diffad_jax.data.dataset.CHUNK_VALUES", 7 * SIZE * SIZE)
    lazy = replace(jpegs, at_once=7)
    one, other = (transforms.fit(name, rows, **OPTIONS[name]) for rows in (array, lazy))
    for key, expected in one.to_arrays().items():
        np.testing.assert_array_equal(other.to_arrays()[key], expected)
    view = other.view(lazy)
    assert (view.shape, view.dtype, len(view)) == (array.shape, np.float32, COUNT)
    np.testing.assert_array_equal(view[np.array([4, 2])], one.apply(array)[[4, 2]])
    np.testing.assert_array_equal(np.asarray(view), one.apply(array))


def test_the_range_of_pictures_on_disk_is_that_of_their_type(jpegs: Jpegs) -> None:
    nothing = replace(jpegs, at_once=0)
    assert transforms.fit("range", nothing, low=0, high=255).arrays["center"] == 127.5
    with pytest.raises(InputError, match=r"low = 0, high = 16, .* \[0, 255\]"):
        transforms.fit("range", nothing, low=0, high=16)


def test_training_on_disk_equals_training_in_memory(jpegs: Jpegs, tmp_path: Path) -> None:
    """And never reads more rows at once than a batch or the calibration needs."""
    config = tiny.get_config()
    config.transform = {"name": "range", "low": 0, "high": 255}
    config.model = {"name": "DiT", "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2}
    config.training.num_steps, config.training.batch_size, config.scoring.calibration_rows = 2, 4, 6
    config.pipeline = {"flip": True}
    statistics = []
    for name, rows in (("memory", jpegs[:]), ("disk", replace(jpegs, at_once=6))):
        runs.train(config, Dataset(name, rows, jpegs[:2], np.array([0, 1])), tmp_path / name, progress=False)
        statistics.append(Statistics.load(tmp_path / name))
    one, other = statistics
    assert one.threshold == other.threshold and other.facts["n_train"] == COUNT
    np.testing.assert_array_equal(one.judge.mean, other.judge.mean)


# --- rows held out ---------------------------------------------------------------------------------------------------


def test_rows_held_out_choose_the_model_and_are_not_trained_on(jpegs: Jpegs, tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    class Spied(Jpegs):
        def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
            seen.append(np.arange(len(self))[index])
            return super().__getitem__(index)

    config = tiny.get_config()
    config.transform = {"name": "range", "low": 0, "high": 255}
    config.model = {"name": "DiT", "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2}
    config.training.update(
        {"num_steps": 6, "batch_size": 4, "checkpoint_every": 2, "validation_rows": 8, "keep": "best"}
    )
    config.scoring.calibration_rows = 8
    config.optimizer.learning_rate = 0.3  # Too high: the first checkpoint is the best.
    rows = Spied(jpegs.files)
    runs.train(config, Dataset("x", rows, jpegs[:2], np.array([0, 1])), tmp_path, progress=False)
    held_out, *trained, calibrated = seen
    assert list(held_out) == [0, 4, 8, 12, 16, 20, 24, 28] == list(calibrated)
    assert not set(held_out) & set(np.concatenate(trained)) and len(trained) == 6
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in log if "validation_loss" in line}
    assert list(losses) == [2, 4, 6] and min(losses, key=losses.__getitem__) < 6
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {4, 6, min(losses, key=losses.__getitem__)}
    # The model that is loaded is the one that was calibrated.
    model = detector.load(tmp_path)
    scores = model.score(np.asarray(jpegs)[held_out])
    np.testing.assert_allclose((scores.mean(), scores.std()), (0, 1), atol=1e-3)


def test_the_held_out_loss_is_a_mean_over_whole_batches_with_the_same_noise_each_time() -> None:
    x_0 = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    def loss(params: Params, x_0: Array, u: Array, keys: Array) -> Array:
        return params * (x_0.sum(axis=-1) + 10 * u + 100 * jax.vmap(jax.random.uniform)(keys))

    validate = runs.make_validate(loss, x_0, seed=0, batch_size=4)
    other = runs.make_validate(loss, x_0, seed=1, batch_size=4)
    assert float(validate(jnp.ones(()))) == float(validate(jnp.ones(()))) != float(other(jnp.ones(())))
    quiet = runs.make_validate(lambda p, x, u, k: x.sum(axis=-1) + 10 * u, x_0, seed=0, batch_size=4)
    expected = x_0[[0, 1, 2, 3, 4, 0, 1, 2]].sum(axis=-1).mean() + 10 * (np.arange(8) * 0.6180339887 % 1).mean()
    assert float(quiet(jnp.ones(()))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"keep": "bset"}, "config.training.keep: found 'bset'; did you mean 'best'. allowed are last, best"),
        ({"keep": "best"}, "config.training.keep: 'best' needs config.training.validation_rows"),
        ({"validation_rows": 2.5}, "config.training.validation_rows: found 2.5, allowed are whole numbers"),
        ({"validation_rows": 0.05}, "config.training.validation_rows: found 0.05, which is 1 of 29 rows"),
        (
            {"validation_rows": 0.01, "keep": "best"},
            "config.training.validation_rows: found 0.01, which is 0 of 29 rows",
        ),
        ({"validation_rows": -1}, "config.training.validation_rows: found -1, allowed are numbers from 0"),
        ({"validation_rows": 15}, "config.training.validation_rows: found 15, which is 15 of 29 rows; allowed are 0"),
        ({"suspected": 0.3}, "config.training.suspected: found 0.3, allowed are numbers from 0 up to 0.25"),
        ({"suspected": 0.1}, "config.training.suspected: found 0.1, allowed with pictures is 0"),
    ],
)
def test_held_out_rows_that_are_refused(jpegs: Jpegs, tmp_path: Path, training: dict[str, object], words: str) -> None:
    config = tiny.get_config()
    config.transform = {"name": "range", "low": 0, "high": 255}
    config.training.update(training)
    with pytest.raises(InputError, match=words):
        runs.train(config, Dataset("x", jpegs, jpegs[:2], np.array([0, 1])), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("wanted", "held_out"), [(0.25, [0, 13, 26, 39]), (5, [0, 10, 20, 29, 39])])
def test_held_out_rows_calibrate_and_teach_nothing(tmp_path: Path, wanted: float, held_out: list[int]) -> None:
    config = tiny.get_config("vectors")
    config.training.num_steps = 2
    with config.ignore_type():
        config.training.validation_rows, config.scoring.calibration_rows = wanted, 4
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    rows[held_out] += 100
    runs.train(config, Dataset("x", rows, rows[:2], np.array([0, 1])), tmp_path, progress=False)
    found = Statistics.load(tmp_path)
    np.testing.assert_allclose(
        found.transform.arrays["center"], np.delete(rows, held_out, axis=0).mean(axis=0), rtol=1e-5
    )
    assert len(found.normal_scores) == len(held_out)
    assert found.threshold > 100 * detector.load(tmp_path).score(np.delete(rows, held_out, axis=0)).max()


def test_suspected_rows_teach_nothing_and_the_threshold_counts_all_but_the_strangest(tmp_path: Path) -> None:
    config = tiny.get_config("vectors")
    config.training.num_steps, config.training.suspected = 2, 0.04
    with config.ignore_type():
        config.training.validation_rows = 0.25
    rows = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    rows[[7, 8, 50, 99]] += 50
    runs.train(config, Dataset("x", rows, rows[:2], np.array([0, 1])), tmp_path, progress=False)
    trusted = baselines.trusted(rows, 4, config.seed)
    kept, suspects = rows[trusted], rows[~trusted]
    assert len(suspects) == 8 and not trusted[[7, 8, 50, 99]].any()
    held_out = evenly_spaced(92, 23)
    trained = detector.load(tmp_path)
    learnt = np.delete(kept, held_out, axis=0)
    np.testing.assert_allclose(trained.statistics.transform.arrays["center"], learnt.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert trained.statistics.facts["n_train"] == 69
    # As large a share of the suspects as of the others, 2 of 8, and 4 % of the 25 do not count.
    scores = np.sort(trained.score(np.concatenate([kept[held_out], suspects[[0, 7]]])))[:24]
    np.testing.assert_allclose(trained.statistics.normal_scores, scores, rtol=1e-4)
    assert trained.statistics.threshold == metrics.threshold(trained.statistics.normal_scores)
    assert trained.statistics.dataset == "x"  # whose rows are those that were given
    trained.statistics.check_trained_on(Dataset("x", rows, rows[:2], np.array([0, 1])), "run")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ({"flips": True}, "config.pipeline.flips: .*did you mean 'flip'"),
        ({"crop": 9}, "config.pipeline.crop: found 9, allowed is up to the 8 pixels"),
        ({"flip": True}, r"config.pipeline: flip and crop need pictures .*\(5,\)"),
    ],
)
def test_pipelines_that_are_refused(pipeline: dict[str, object], words: str) -> None:
    config = tiny.get_config()
    config.pipeline = pipeline
    with pytest.raises(InputError, match=words):
        settings.pipeline_of(config, (8, 12, 1) if "crop" in pipeline else (5,))


# --- crops ------------------------------------------------------------------------------------------------------------


def test_crops_are_squares_of_the_pictures_drawn_anew_each_step() -> None:
    batches = Batches(PICTURES, 0, 8, 0, 6, crop=5)
    found = np.concatenate([x[0] for x in read(batches)])
    rows = batch_rows(0, COUNT, 0, len(found))
    corners = set()
    for crop, row in zip(found, rows, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(PICTURES[row, ..., 0], (5, 5))
        matches = np.argwhere((windows == crop[..., 0]).all(axis=(2, 3)))
        assert len(matches) == 1
        corners.add(tuple(matches[0]))
    assert len(corners) > 10
    # Where a picture is cut says nothing of whether it is mirrored.
    both = set()
    for step, (first, *_) in enumerate(x[0] for x in read(Batches(PICTURES, 0, 8, 0, 60, crop=5, flip=True))):
        row = batch_rows(0, COUNT, 8 * step, 1)[0]
        windows = np.lib.stride_tricks.sliding_window_view(PICTURES[row, ..., 0], (5, 5))
        for mirrored, picture in enumerate((first, first[:, ::-1])):
            both |= {
                (mirrored, bool(top >= 2)) for top, _ in np.argwhere((windows == picture[..., 0]).all(axis=(2, 3)))
            }
    assert len(both) == 4
    # The shares of two processes are the parts of the whole.
    halves = [Batches(PICTURES, 0, 8, 0, 6, crop=5, own=own)[3] for own in (slice(4), slice(4, 8))]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), batches[3])


def test_a_model_of_patches_reads_whole_pictures(tmp_path: Path) -> None:
    config = tiny.get_config()
    config.transform.high = 255.0
    config.pipeline = {"crop": 4}
    config.model = {"name": "DiT", "patch_size": 2, "width": 16, "depth": 1, "num_heads": 2}
    config.training.num_steps = 2
    labels = np.r_[np.zeros(COUNT - 1, int), 1]
    runs.train(config, Dataset("patches", PICTURES, PICTURES, labels), tmp_path, progress=False)
    trained = detector.load(tmp_path)
    assert trained.sample(2, 2).shape == (2, 4, 4, 1)
    scores, maps, _ = (np.concatenate(parts) for parts in zip(*trained.read(PICTURES), strict=True))
    assert maps.shape == (COUNT, SIZE, SIZE)
    np.testing.assert_allclose(scores, trained.score(PICTURES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, trained.score(jnp.asarray(PICTURES)), rtol=1e-4, atol=1e-5)
    x_0, x_t, reconstruction, heat = trained.explain(PICTURES[:3])
    assert x_0.shape == x_t.shape == reconstruction.shape == (3, SIZE, SIZE, 1)
    np.testing.assert_allclose(heat, maps[:3], rtol=1e-4, atol=1e-5)
    # The picture is noised as one: what is averaged where patches overlap would be smoother.
    t = np.float32(config.scoring.get("picture_time", 0.5))
    noise = (x_t - trained.system.process.alpha(t) * x_0) / trained.system.process.sigma(t)
    assert noise[:, 2:6, 2:6].std() > 0.8
    config.pipeline.crop = 9
    with pytest.raises(InputError, match=r"config.pipeline.crop: found 9, allowed is up to the 8 pixels"):
        runs.train(config, Dataset("patches", PICTURES, PICTURES, labels), tmp_path / "other", progress=False)


def test_crops_do_not_depend_on_the_steps_of_a_dispatch() -> None:
    four, one = (Batches(PICTURES, 0, 3, 0, 4, steps, crop=4) for steps in (4, 1))
    np.testing.assert_array_equal(four[0], np.concatenate([one[i] for i in range(4)]))


def test_held_out_pictures_are_read_in_their_middle() -> None:
    x = np.arange(48).reshape(1, 6, 8, 1)
    np.testing.assert_array_equal(runs._middle(x, (2, 2, 1)), x[:, 2:4, 3:5])


def test_a_directory_in_which_nothing_was_learnt_takes_other_data(tmp_path: Path) -> None:
    config, rows = tiny.get_config("vectors"), np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    config.training.num_steps = 2
    labels = np.repeat([0, 1], 20)
    workdir.save_data(
        tmp_path, Dataset("begun", rows[:30], rows, labels), fingerprint(rows[:30])
    )  # and killed before its first checkpoint
    runs.train(config, Dataset("right", rows, rows, labels), tmp_path, progress=False)
    assert Statistics.load(tmp_path).dataset == "right"
