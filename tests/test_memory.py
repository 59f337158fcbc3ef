"""The memory of normals: distances of places, their scores, and a whole run that finds and locates scratches."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from numpy.testing import assert_allclose
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from diffad_jax import detector, evaluation, memory, runs
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.folders import mvtec
from diffad_jax.errors import InputError
from diffad_jax.folder_scores import BRIGHTEST, colours
from diffad_jax.memory import Memory, local_statistics, nearest, read, remember
from diffad_jax.metrics import threshold
from diffad_jax.pixel_metrics import pixel_auroc

SIZE = 64


def normal_maps(count: int, seed: int) -> np.ndarray:
    """Maps [2, count, 64, 64] of two kinds of normals, which differ by a factor of 50."""
    rng = np.random.default_rng(seed)
    kind = np.where(np.arange(count) % 2, 50.0, 1.0)[:, None, None]
    return np.asarray(rng.chisquare(4, (2, count, SIZE, SIZE)) * kind, np.float32)


def test_statistics_are_logarithms_of_window_means_with_and_without_exposure() -> None:
    maps = normal_maps(3, 0)
    found = np.asarray(local_statistics(jnp.asarray(maps)))
    assert found.shape == (3, 32, 32, 4)
    # Windows of 8 pixels begin 3 before every second pixel, as "SAME" has it.
    assert_allclose(found[1, 5, 7, 0], np.log(maps[0, 1, 7:15, 11:19].mean()), rtol=1e-5)
    assert_allclose(found[1, 0, 0, 1], np.log(maps[1, 1, :5, :5].mean()), rtol=1e-5)
    assert_allclose(found[..., 2:], found[..., :2] - np.median(found[..., :2], axis=(1, 2), keepdims=True), atol=1e-5)
    exposed = np.asarray(local_statistics(jnp.asarray(9 * maps)))
    assert_allclose(exposed[..., :2] - found[..., :2], np.log(9), atol=1e-4)
    assert_allclose(exposed[..., 2:], found[..., 2:], atol=1e-4)
    assert local_statistics(jnp.ones((1, 1, 8, 40))).shape == (1, 8, 40, 2)
    assert local_statistics(jnp.ones((1, 1, 50, 100))).shape == (1, 25, 34, 2)
    with pytest.raises(InputError, match="'memory' needs a score with maps of pictures"):
        local_statistics(jnp.ones((2, 5)))


def test_distance_is_that_to_the_nearest_row_of_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNK", 16)
    monkeypatch.setattr(memory, "TILE", 10)  # five places of two pictures; the last tile holds one of the sixteen
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=(4, 4, 3)), rng.uniform(1, 2, (4, 4, 3))
    whitening, bank = rng.normal(size=(3, 3)), rng.normal(size=(50, 3))
    x = rng.normal(size=(2, 4, 4, 3))
    query = (x - mean) / scale @ whitening
    expected = ((query[..., None, :] - bank) ** 2).sum(axis=-1).min(axis=-1) / 3
    made = Memory(*(jnp.asarray(a, jnp.float32) for a in (mean, scale, whitening, bank, 1.0)))
    assert_allclose(nearest(made, jnp.asarray(x, jnp.float32)), expected, rtol=1e-3, atol=1e-5)


def test_what_lies_between_two_kinds_of_normals_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strong errors are normal in one kind of picture, weak ones in the other; a mean and a deviation have no room for it."""
    monkeypatch.setattr(memory, "BANK_ROWS", 16_384)  # fewer than there are windows, so that all banks are of one size
    maps, test = normal_maps(40, 0), normal_maps(20, 1)
    made, normal_scores = remember(np.asarray(local_statistics(jnp.asarray(maps))), seed=0)
    damaged = test.copy()
    damaged[:, ::2, 40:56, 8:24] *= 7  # between 1 and 50
    damaged[:, 1::2, 40:56, 8:24] /= 7
    scores, normal = read(made, jnp.asarray(test))
    anomalous, shown = (np.asarray(found) for found in read(made, jnp.asarray(damaged)))
    assert shown.shape == (20, SIZE, SIZE)
    masks = np.zeros(shown.shape, bool)
    masks[:, 40:56, 8:24] = True
    assert pixel_auroc(masks, shown) > 0.97
    assert anomalous.min() > np.asarray(scores).max()
    with pytest.raises(InputError, match=r"its memory has \(5, 5\) places, pictures now give \(32, 32\)"):
        read(made._replace(mean=made.mean[:5, :5]), jnp.asarray(damaged))
    in_larger_units = np.asarray(jax.jit(read)(made._replace(unit=3 * made.unit), jnp.asarray(damaged))[1])
    assert_allclose(3 * (in_larger_units + 1), shown + 1, rtol=1e-3, atol=1e-3)
    # Scores of the training normals are those of normals never seen: none of them found itself.
    assert normal_scores.min() > 0 and np.mean(np.asarray(scores) > np.quantile(normal_scores, 0.95)) <= 0.1
    assert -0.6 < np.mean(normal) < 0.1
    with pytest.raises(InputError, match="needs 4 normals or more, found 3"):
        remember(np.zeros((3, 2, 2, 2), np.float32), seed=0)


def test_places_where_normals_lie_far_apart_hide_no_defect_elsewhere() -> None:
    """As corners do that a screw seldom reaches. On the left all statistics are noise, on the right one tells the others."""

    def drawn(count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noise, signal = rng.normal(size=(count, 16, 16, 6)), rng.normal(size=(count, 16, 16, 1))
        return np.where(np.arange(16)[:, None] < 8, noise, signal + 0.2 * noise).astype(np.float32)

    made, of_normals = remember(drawn(60, 0), seed=0)
    normal, damaged = drawn(60, 1), drawn(60, 2)
    damaged[:, 6:9, 11:14, 0] += 1.5

    def scores(statistics: np.ndarray, unit: Array) -> np.ndarray:
        return np.asarray(memory._of_picture(nearest(made, jnp.asarray(statistics)) / unit))

    def auroc(unit: Array) -> float:
        return float(roc_auc_score(np.repeat([0, 1], 60), np.r_[scores(normal, unit), scores(damaged, unit)]))

    assert auroc(made.unit) > 0.95
    assert auroc(made.unit.mean()) < 0.8
    assert np.mean(scores(normal, made.unit) > np.quantile(of_normals, 0.95)) < 0.15


def test_one_normal_that_differs_where_all_others_agree_hides_no_defect() -> None:
    def drawn(count: int, seed: int) -> np.ndarray:
        statistics = np.random.default_rng(seed).normal(size=(count, 16, 32, 6)).astype(np.float32)
        statistics[:, :, 12:] = 0
        return statistics

    normals = drawn(40, 0)
    normals[7, :2, 30:] = 5
    made, of_normals = remember(normals, seed=0)
    damaged = drawn(10, 1)
    damaged[:, 6:9, 4:7] += 6
    found = np.asarray(memory._of_picture(nearest(made, jnp.asarray(damaged)) / made.unit))
    assert found.min() > np.quantile(of_normals, 0.95)


def test_new_normals_pass_the_threshold_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(8, 2, 240, SIZE, SIZE)), (0, 0, 0, 2, 2))
    maps = (smooth**2).sum(axis=0).astype(np.float32)
    made, normal_scores = remember(np.asarray(local_statistics(jnp.asarray(maps[:, :40]))), seed=0)
    new = np.asarray(jax.jit(read)(made, jnp.asarray(maps[:, 40:]))[0])
    # The share beyond the 95 % quantile of 40 scores has a standard deviation of about 0.035; with two halves it is 0.
    assert 0.005 < (new > threshold(normal_scores)).mean() < 0.15


def test_maps_without_spread_stay_finite() -> None:
    same = np.asarray(local_statistics(jnp.full((2, 6, 16, 16), 0.1)))
    made, _ = remember(same, seed=0)
    assert np.abs(np.asarray(read(made, jnp.full((2, 1, 16, 16), 0.2))[0])).max() < 1e15
    made, scores = remember(np.asarray(local_statistics(jnp.ones((2, 4, 16, 16)))), seed=0)
    assert np.isfinite(scores).all() and np.isfinite(np.asarray(read(made, jnp.zeros((2, 1, 16, 16)))[1])).all()


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Brushed plates of any exposure in MVTec-AD's layout, some of them scratched across."""
    root, rng = tmp_path_factory.mktemp("plates"), np.random.default_rng(0)
    for split, count in (("train/good", 60), ("test/good", 20), ("test/scratch", 20)):
        (root / split).mkdir(parents=True)
        (root / "ground_truth/scratch").mkdir(parents=True, exist_ok=True)
        for i in range(count):
            x = np.repeat(rng.normal(0, 1, (1, SIZE)), SIZE, axis=0) + 0.3 * rng.normal(size=(SIZE, SIZE))
            mask = np.zeros((SIZE, SIZE), bool)
            if "scratch" in split:
                top, left = rng.integers(4, SIZE - 28, 2)
                mask[top : top + 6, left : left + 24] = True
                x[mask] = rng.normal(0, 1, (6, 1)).repeat(24, axis=1).ravel()
                Image.fromarray(mask).save(root / f"ground_truth/scratch/{i:03}_mask.png")
            pixels = rng.uniform(90, 160) + rng.uniform(8, 25) * x
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{split}/{i:03}.png")
    return root


def test_a_run_with_a_memory_finds_scratches_and_draws_them(tiles: Path, tmp_path: Path) -> None:
    """No exposure is normal or anomalous here, and no brightness: only the direction of a stroke is."""
    config = tiny.get_config()
    config.data = {"name": "mvtec", "path": str(tiles), "size": SIZE}
    config.transform = {"name": "contrast"}
    config.denoiser.sigma_data = 0.5
    config.model.patch_size = 2
    config.training.num_steps = 20
    config.score = {"name": "one_step", "times": (0.3, 0.4), "num_draws": 2, "bias": True, "gradients": True}
    config.scoring.update({"combination": "memory", "batch_size": 16})
    dataset = mvtec(tiles, SIZE)
    runs.train(config, dataset, tmp_path, progress=False)
    trained = detector.load(tmp_path)
    assert isinstance(trained.statistics.judge, Memory)
    scores, maps, errors = (np.concatenate(parts) for parts in zip(*trained.read(dataset.test), strict=True))
    assert_allclose(trained.score(dataset.test), scores, rtol=1e-3, atol=1e-3)
    assert_allclose(errors, scores)
    assert roc_auc_score(dataset.labels, scores) > 0.95
    assert pixel_auroc(np.asarray(dataset.masks), maps) > 0.9
    called = scores > trained.statistics.threshold
    assert called[dataset.labels == 0].mean() < 0.3 and called[dataset.labels == 1].mean() > 0.8
    # The colours of a picture file: black at the usual distance, brightest at BRIGHTEST times that, or at its own most.
    defects = np.array(
        [[[-1.0, 0.0, 2.0, BRIGHTEST - 1.0, 2.0]], [[-1.0, 0.0, 2e4, 3e4, 4e4]], [[-1.0, 0.0, 0.0, 1.0, 2.0]]]
    )
    shown, large, normal = colours(trained.statistics, defects)[:, 0].sum(axis=-1, dtype=int)
    assert shown[0] == shown[1] < shown[2] == shown[4] < shown[3]
    assert large[0] == large[1] == shown[0] < large[2] < large[3] < large[4] == shown[3]
    assert normal[1] == shown[1] < normal[3] < normal[4] == shown[4]


def test_a_memory_is_refused_before_training_where_there_are_no_maps(tmp_path: Path) -> None:
    config = tiny.get_config("vectors")
    config.scoring.combination = "memory"
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    with pytest.raises(InputError, match="'memory' needs a score with maps"):
        runs.train(config, Dataset("rows", rows, rows, np.arange(40) % 2), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_statistics_are_whitened_by_their_shrunk_correlations() -> None:
    draw = np.random.default_rng(0)
    statistics = draw.normal(size=(50, 3, 3, 4)) @ draw.normal(size=(4, 4))
    whitening = memory.remember(statistics, 0)[0].whitening
    rows = ((statistics - statistics.mean(axis=0)) / statistics.std(axis=0)).reshape(-1, 4)
    shrunk = 0.8 * rows.T @ rows / len(rows) + 0.2 * np.eye(4)
    assert_allclose(whitening.T @ shrunk @ whitening, np.eye(4), atol=1e-4)


def test_a_bank_with_room_for_some_draws_from_all_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BANK_ROWS", 20)
    statistics = np.random.default_rng(0).normal(size=(10, 2, 2, 3)).astype(np.float32)
    statistics[5:] += 9
    remembered, _ = memory.remember(statistics, 0)
    kept = np.asarray(remembered.bank) @ np.linalg.inv(remembered.whitening)
    assert 0 < (kept.mean(axis=1) > 0).sum() < 20


def test_the_scores_of_remembered_normals_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = np.random.default_rng(0).normal(size=(12, 2, 2, 3)).astype(np.float32)
    monkeypatch.setattr(evaluation, "make_summaries", lambda *_: lambda rows: statistics)
    *_, scores = evaluation.fit_judge(None, None, statistics, np.arange(len(statistics)), "memory", 0, 4)  # type: ignore[arg-type]
    assert (np.diff(scores) >= 0).all()
