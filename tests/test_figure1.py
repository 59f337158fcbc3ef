"""Figure 1 on tiny pictures: what it leaves, what a second run computes, what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from processes import Finished, command

from diffad_jax import results_file, scalability
from diffad_jax.data.loading import load
from diffad_jax.errors import InputError
from diffad_jax.workdir import load_config

TINY = str(Path(tiny.__file__))
SMALL = (
    *(f"--unet={TINY}", "--unet.transform.high=255.0", "--resolutions=8,16", "--steps=2"),
    *("--unet.scoring.calibration_rows=4", "--unet.training.batch_size=8", "--unet.scoring.batch_size=8"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of a dark class and four of a bright one."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count, low in (("animal", 16, 0), ("thing", 4, 128)):
        (folder / name).mkdir()
        for i in range(count):
            Image.fromarray(draw.integers(low, low + 128, (20, 20, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def figure1(folder: Path, out: Path, *arguments: str) -> Finished:
    where = f"--data_dir={folder}", "--normal=animal", f"--out={out}"
    return command("experiments.figure1", *where, *SMALL, *arguments, output=out.parent)


def rows_of(out: Path) -> list[results_file.Row]:
    return results_file.Results(out / "results.csv").rows


def test_every_method_at_every_resolution_and_nothing_twice(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figure"
    first = figure1(folder, out, "--methods=unet,iforest")
    assert first.code == 0, first.err
    rows = rows_of(out)
    assert {(scalability.resolution(row["dataset"]), row["method"]) for row in rows} == {
        (size, method) for size in (8, 16) for method in ("unet", "iforest")
    }
    assert all((row["n_train"], row["n_test"]) == (8, 12) and 0 <= row["auroc"] <= 1 for row in rows), rows
    assert all(row["auroc"] > 0.9 for row in rows if row["method"] == "iforest"), "dark against bright"
    picture = Image.open(out / "figure1.png")
    assert picture.width > 1000
    text = (out / "figure1.md").read_text()
    assert all(word in text for word in ("8x8", "16x16", "proposed 63.5", "ocsvm 59.4", "iforest 58.4", "unet"))
    (run,) = out.glob("runs/*_16_*/unet_0")
    assert load(load_config(run).data)[0].test.shape == (12, 16, 16, 3)
    # A row that is there is taken as it is, an added method is computed, a failure is told and tried again.
    marked = (out / "results.csv").read_text().replace(f",{rows[0]['auroc']},", ",0.123456,", 1)
    (out / "results.csv").write_text(marked)
    second = figure1(folder, out, "--methods=unet,iforest,dit", f"--dit={TINY}")
    assert second.code == 0, second.err
    assert "0.123456" in (out / "results.csv").read_text()
    failures = [line for line in (out / "results.csv").read_text().splitlines() if ",dit," in line]
    assert len(failures) == 2 and all("InputError: transform 'range'" in line for line in failures)
    assert "Failures" in (out / "figure1.md").read_text() and len(rows_of(out)) == 4
    other = figure1(folder, out, "--methods=unet", "--unet.seed=5", "--unet.optimizer.learning_rate=1.0")
    assert other.code == 2 and "config.optimizer.learning_rate" in other.err and "another" in other.err


def test_many_classes_fit_the_name_of_a_folder() -> None:
    many = [f"n{i:08}" for i in range(398)]
    assert scalability.normal_name(["cat", "dog"]) == "normal cat dog"
    assert len(scalability.normal_name(many)) < 40
    assert scalability.normal_name(many) != scalability.normal_name(many[1:] + ["n09999999"])


def test_patches_grow_with_the_picture() -> None:
    config = tiny.get_config()
    sizes = (32, 64, 128, 224)
    assert [scalability.scaled(config, size, None).model.patch_size for size in sizes] == [1, 2, 4, 7]
    config.model = {"name": "DiT"}
    assert [scalability.scaled(config, size, 9).model.patch_size for size in sizes] == [2, 4, 8, 14]
    assert scalability.scaled(config, 32, 9).training.num_steps == 9 and config.training.num_steps == 20
    with pytest.raises(InputError, match="resolution: found 100, allowed for DiT are multiples of 16"):
        scalability.scaled(config, 100, None)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figure"
    for argument, word in (
        ("--methods=ifrest", "'iforest'"),
        ("--resolutions=8,x", "'x'"),
        ("--normal=animals", "'animal'"),
        ("--unet.model.chanels=8", "chanels"),
        ("--unet.optimiser.b2=0.9", "'optimizer'"),
        ("--dit.training.batch_siz=8", "'batch_size'"),
        ("--unet=nowhere.py", "nowhere.py"),
    ):
        refused = figure1(folder, out, argument)
        assert refused.code == 2 and word in refused.err and len(refused.err.splitlines()) == 1, refused
    assert not out.exists()


def test_curves_compare_methods_over_the_seeds_that_all_have() -> None:
    found = {"dit": {0: 0.9, 1: 0.5}, "ocsvm": {0: 0.85}}
    rows = [
        results_file.row(
            results_file.Key(f"photos_{size}", method, "normal cat", seed),
            {"auroc": auroc, "seconds_train": 2.0 + seed, "seconds_score": 1.0},
        )
        for method, seeds in found.items()
        for seed, auroc in seeds.items()
        for size in (8, 16)
    ]
    failed = results_file.row(results_file.Key("photos_8", "ocsvm", "normal cat", 1), {"error": "ValueError: full"})
    curves = scalability.curves_of([*rows[:-1], failed], ["iforest", "dit", "ocsvm"])
    assert (curves.methods, curves.resolutions) == (["dit", "ocsvm"], [8, 16])
    # At 16 pixels OCSVM has no result at all.
    np.testing.assert_allclose(curves.auroc, [[0.9, 0.7], [0.85, np.nan]])
    np.testing.assert_allclose(curves.seconds, [[3, 3.5], [3, np.nan]])
