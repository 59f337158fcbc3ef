"""Selection: it chooses what its measurements say, these are what they claim, and no label but those that may be read."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from processes import command
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]
from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

from diffad_jax import densities
from diffad_jax.data import transforms
from diffad_jax.pseudo import pseudo_anomalies

CONSTANTS = ("pooling", "shrinkage", "clip", "bandwidth_neighbours", "terms", "views", "margin")


def clusters(rows: int, seed: int = 0) -> np.ndarray:
    """Normals in two clusters of different width, columns correlated, in units of their own."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 5)) @ generator.normal(size=(5, 5)) * np.array([1, 1, 1, 5, 0.2])
    x[::2] = 6 + 0.2 * x[::2]
    return x.astype(np.float32)


def test_pseudo_anomalies_are_made_of_pairs_of_different_normals() -> None:
    normals = clusters(400)
    spoilt = pseudo_anomalies(normals, 0)
    other = normals - (spoilt["extrapolate"] - normals) / 0.3
    distances, partner = NearestNeighbors(n_neighbors=1).fit(normals).kneighbors(other)
    assert distances.max() < 1e-3
    assert sorted(partner[:, 0]) == list(range(400)) and (partner[:, 0] != np.arange(400)).all()
    other = normals[partner[:, 0]]
    for name, fraction in (("swap half", 0.5), ("swap fifth", 0.2)):
        assert ((spoilt[name] == normals) | (spoilt[name] == other)).all()
        assert abs((spoilt[name] != normals).mean() - fraction) < 0.03
    noise = (spoilt["noise"] - normals) / normals.std(axis=0)
    np.testing.assert_allclose(noise.std(axis=0), 0.5, rtol=0.1)
    again, different = pseudo_anomalies(normals, 0), pseudo_anomalies(normals, 1)
    assert all(np.array_equal(x, again[kind]) and not np.array_equal(x, different[kind]) for kind, x in spoilt.items())


def brute_scores(normals: np.ndarray, rows: np.ndarray, settings: dict[str, float]) -> np.ndarray:
    """The scores of rows by the formulas in the docstrings of `nearness`."""
    transform = transforms.fit("whiten", normals, pooling=settings["pooling"], shrinkage=settings["shrinkage"])
    deviations = transform.deviations
    assert deviations is not None
    views = []
    columns = (np.ones(len(deviations)), deviations)[: int(settings["views"])]
    for weights, bound, margin in (
        *((w, settings["clip"], 0) for w in columns),
        (columns[-1], 1e3, settings["margin"]),
    ):
        bank, x = (transform.apply(some).astype(float) * weights for some in (normals, rows))
        near, far = int(settings["bandwidth_neighbours"]), round(min(max(settings["terms"] / bank.shape[1], 3), 10))
        distances, places = NearestNeighbors(n_neighbors=near + 1).fit(bank).kneighbors(bank)
        h = np.sqrt((distances[:, 1:] ** 2).mean(axis=1))
        group = densities.groups(h, places, bound)
        m = np.array([np.median(h[group == one]) for one in range(group.max() + 1)])[group]
        h = np.clip(h, m / bound, m * bound)
        found, own = (np.linalg.norm(some[:, None] - bank, axis=-1) / h for some in (x, bank))
        np.fill_diagonal(own, np.inf)
        logs, usual = (np.log(np.sort(d, axis=1)[:, :far].mean(axis=1)) for d in (found, own))
        views.append((logs - usual.mean()) / usual.std() - margin)
    return np.max(views, axis=0)


def brute_force(normals: np.ndarray, settings: dict[str, float]) -> dict[str, float]:
    """The AUROC of each kind of pseudo-anomaly; the split is that of the command."""
    drawn = normals[np.random.default_rng(0).permutation(len(normals))]
    cut = 2 * len(normals) // 3
    held_out = drawn[cut:]
    labels = np.repeat([0, 1], len(held_out))
    return {
        kind: roc_auc_score(labels, brute_scores(drawn[:cut], np.concatenate([held_out, x]), settings))
        for kind, x in pseudo_anomalies(held_out, 0).items()
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The command on two folders that share the training normals and nothing else."""
    root = tmp_path_factory.mktemp("selection")
    outs = []
    for seed, anomalies in ((1, 20), (2, 35)):
        folder, out = root / f"data{seed}", root / f"out{seed}"
        folder.mkdir()
        for name, rows in (("a", 90), ("b", 40)):
            tested = np.random.default_rng(seed).normal(size=(rows + anomalies, 5)) * 10**seed
            x, y = np.concatenate([clusters(rows), tested]), np.repeat([0, 1], [2 * rows, anomalies])
            np.savez(folder / f"{name}.npz", X=x, y=y)
        done = command("experiments.selection", f"--data_dir={folder}", f"--out={out}", output=root / f"said{seed}")
        assert done.code == 0, done.err
        outs.append(out)
    return outs


def test_neither_test_rows_nor_anomalies_change_anything(results: list[Path]) -> None:
    for name in ("selection.csv", "selection.md"):
        first, other = ((out / name).read_bytes() for out in results)
        assert first == other and len(first) > 100


def test_measurements_are_those_of_brute_force_and_no_change_of_one_constant_beats_the_choice(
    results: list[Path],
) -> None:
    with (results[0] / "selection.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = defaultdict(list)
    for line in lines:
        settings = {name: float(line[name]) for name in CONSTANTS}
        aurocs = {kind: float(line[kind]) for kind in ("swap half", "swap fifth", "extrapolate", "noise")}
        found[tuple(settings.values())].append(list(aurocs.values()))
        if line["dataset"] == "a" and len(found) % 7 == 0:
            assert brute_force(clusters(90), settings) == pytest.approx(aurocs, abs=2e-3)
    criterion = {settings: np.mean(values) for settings, values in found.items()}
    said = (results[0] / "selection.md").read_text().split("chosen: ")[1].split(" (")[0]
    chosen = tuple(float(part.split(" = ")[1]) for part in said.split(", "))
    for i, name in enumerate(CONSTANTS):
        line = [s for s in criterion if s[:i] + s[i + 1 :] == chosen[:i] + chosen[i + 1 :]]
        assert len(line) == dict(zip(CONSTANTS, (5, 5, 7, 4, 5, 2, 5)))[name]
        assert criterion[chosen] >= max(criterion[s] for s in line) - 1e-6
    assert criterion[chosen] > criterion[0, 0, 1, 3, 0, 1, np.inf]


@pytest.mark.slow
def test_labelled_sets_count_for_half(tmp_path: Path) -> None:
    folder, others = tmp_path / "data", tmp_path / "others"
    anomalies = clusters(30, seed=3) + 4
    for home, name, x, y in (
        (folder, "a", clusters(90), np.repeat([0, 1], [60, 30])),
        (others, "c", np.concatenate([clusters(80, seed=2), anomalies]), np.repeat([0, 1], [80, 30])),
        (others, "d", np.concatenate([clusters(60, seed=4), anomalies]), np.repeat([0, 1], [60, 30])),
    ):
        home.mkdir(exist_ok=True)
        np.savez(home / f"{name}.npz", X=x, y=y)
    flags = [f"--data_dir={folder}", f"--out={tmp_path / 'out'}"]
    done = command("experiments.selection", *flags, f"--labelled={others}", output=tmp_path / "said")
    assert done.code == 0, done.err
    text = (tmp_path / "out/selection.md").read_text().split("chosen: ")[1]
    values, criterion = text.split(" (criterion ")
    chosen = {name: float(value) for name, value in (part.split(" = ") for part in values.split(", "))}
    with (tmp_path / "out/selection.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if all(float(line[name]) == chosen[name] for name in CONSTANTS)]
    pseudo, *labelled = lines
    assert [line["dataset"] for line in lines] == ["a", "c", "d"] and pseudo["anomalies"] == ""
    normals = clusters(80, seed=2)  # The first half of the file trains.
    scores = brute_scores(normals[:40], np.concatenate([normals[40:], anomalies]), chosen)
    assert float(labelled[0]["anomalies"]) == pytest.approx(
        roc_auc_score(np.repeat([0, 1], [40, 30]), scores), abs=2e-3
    )
    kinds = [float(pseudo[kind]) for kind in ("swap half", "swap fifth", "extrapolate", "noise")]
    mean = (np.mean(kinds) + np.mean([float(line["anomalies"]) for line in labelled])) / 2
    assert float(criterion.split(",")[0]) == pytest.approx(mean, abs=1e-4)
    (tmp_path / "empty").mkdir()
    done = command("experiments.selection", *flags, f"--labelled={tmp_path / 'empty'}", output=tmp_path / "said")
    assert done.code == 2 and f"--labelled: {tmp_path / 'empty'} holds no .npz file" in done.err
    done = command("experiments.selection", *flags, f"--labelled={folder}", output=tmp_path / "said")
    assert done.code == 2 and f"--labelled: {folder} holds sets of --data_dir" in done.err
