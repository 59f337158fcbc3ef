"""Files of rows: the same data in every format, a line for whatever is wrong with one, and a run of CSV files alone."""

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from processes import Finished, command

from diffad_jax import detector
from diffad_jax.data.adbench import adbench
from diffad_jax.data.loading import load
from diffad_jax.data.row_files import labelled, read, unlabelled
from diffad_jax.errors import InputError

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
NAMES = ("length", "width", "a, b")


def table(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose digits matter, the last quarter of them anomalies."""
    y = (np.arange(count) >= 0.75 * count).astype(int)
    return RNG.normal(size=(count, 3)) + 4.0 * y[:, None], y


def save_csv(path: Path, names: tuple[str, ...], columns: list[np.ndarray]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([names] if names else []), *zip(*(column.tolist() for column in columns))])
    return path


def test_every_format_gives_the_same_data(tmp_path: Path) -> None:
    X, y = table()
    first, *others = X.T
    np.savez(tmp_path / "a.npz", X=X, y=y, notes=np.array(["not read"], object))
    np.savez(tmp_path / "b.npz", X=X)
    np.save(tmp_path / "c.npy", X)
    save_csv(tmp_path / "d.csv", (NAMES[0], "y", *NAMES[1:]), [first, y, *others])
    save_csv(tmp_path / "e.csv", (), [*X.T])
    save_csv(tmp_path / "f.csv", NAMES, [*X.T])
    for name, named, has_labels in (
        *(("a.npz", (), True), ("b.npz", (), False), ("c.npy", (), False)),
        *(("d.csv", NAMES, True), ("e.csv", (), False), ("f.csv", NAMES, False)),
    ):
        stored, (rows, columns) = read(tmp_path / name), unlabelled(tmp_path / name)
        assert_array_equal(stored.X, X)
        assert_array_equal(rows, X)
        assert stored.columns == columns == named
        dataset = adbench(tmp_path / name, normals_alone=True)
        assert dataset.columns == named and dataset.name == name[0]
        if has_labels:
            assert_array_equal(stored.y, y)
            assert_array_equal(labelled(tmp_path / name)[0], X.astype(np.float32))
            assert_array_equal(dataset.train, X[:15].astype(np.float32))
        else:
            assert stored.y is None and len(dataset.train) == 40 and len(dataset.test) == 0
            with pytest.raises(InputError, match="holds no labels, needed is y"):
                labelled(tmp_path / name)
            with pytest.raises(InputError, match="y holds the labels 0"):
                adbench(tmp_path / name)


def test_a_csv_file_may_come_from_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "spreadsheet.csv"
    path.write_bytes('\ufeff"length", width\r\n"1.5",-2e3\r\n\r\n 3 ,4\r\n'.encode())
    stored = read(path)
    assert stored.columns == ("length", "width")
    assert_array_equal(stored.X, [[1.5, -2000], [3, 4]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,red\n", "line 3: found 'red' in column 'b', allowed are numbers"),
        ("a,b\n1,2\n,4\n", "line 3: found '' in column 'a', allowed are numbers"),
        ("1,2\n3,4\n5\n", "line 3 has 1 cells, expected are the 2 of the first line"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells, expected are the 2 of the first line"),
        ("a;b\n1;2\n", "line 2: found '1;2' in column 'a;b'"),
        (",a,b\n0,1,2\n", r"column 0 has no name; .*index=False"),
        ("a,b,a\n1,2,3\n", "two columns are named 'a'"),
        ("a,Label\n1,0\n", "column 'Label' looks like labels; call it y"),
        ("a,b\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_what_is_no_table_of_numbers_is_told_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"rows\.csv: {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for name in ("picture.csv", "objects.npy", "gone.csv", "gone.npy", "gone.npz"):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
        with pytest.raises(InputError, match=Path(name).stem):
            load({"name": "adbench_folder", "path": str(tmp_path / name)})
    with pytest.raises(InputError, match="rows.txt: is no .npz, .npy or .csv file"):
        (tmp_path / "rows.txt").write_text("1,2")
        load({"name": "adbench_folder", "path": str(tmp_path / "rows.txt")})


def test_a_run_of_csv_files_scores_the_columns_that_it_has_learnt(tmp_path: Path) -> None:
    def run(name: str, *arguments: str) -> Finished:
        return command(f"experiments.{name}", "--workdir", str(tmp_path / "run"), *arguments, output=tmp_path)

    X, y = table(80)
    normals = save_csv(tmp_path / "normals.csv", NAMES, [*X[:60].T])
    config = "--config", str(ROOT / "configs/adbench.py"), f"--config.data.path={normals}"
    small = "--config.training.num_steps=4", "--config.model.width=8", "--config.scoring.combination=nearest"
    trained = run("train", *config, *small)
    assert trained.code == 0, trained.err
    test = save_csv(tmp_path / "test.csv", (*NAMES, "y"), [*X.T, y])
    evaluated = run("evaluate", "--baselines=", f"--data={test}")
    assert evaluated.code == 0 and "nearest normals" in evaluated.out, evaluated
    scored = run("score", f"--input={test}", f"--out={tmp_path / 'scores'}")
    assert scored.code == 0 and "scored: 80 rows" in scored.out, scored
    with (tmp_path / "scores" / "scores.csv").open() as file:
        found = [float(row["score"]) for row in csv.DictReader(file)]
    scores = detector.load(tmp_path / "run").score(X)
    assert_allclose(found, scores, rtol=1e-4)
    assert scores[60:].min() > np.median(scores[:60])

    turned = save_csv(tmp_path / "turned.csv", (*NAMES[1::-1], NAMES[2], "y"), [X[:, 1], X[:, 0], X[:, 2], y])
    for finished in (
        run("evaluate", "--baselines=", f"--data={turned}"),
        run("score", f"--input={turned}", f"--out={tmp_path / 'other'}"),
    ):
        assert finished.code == 2 and len(finished.err.splitlines()) == 1, finished
        assert "turned.csv" in finished.err and "found 'width' as column 0, the run has learnt 'length'" in finished.err
    assert not (tmp_path / "other").exists()
    wider = save_csv(tmp_path / "wider.csv", (*NAMES, "depth"), [*X.T, X[:, 0]])
    finished = run("score", f"--input={wider}", f"--out={tmp_path / 'other'}")
    assert finished.code == 2 and "found 4 columns, the run has learnt 3 columns" in finished.err, finished
