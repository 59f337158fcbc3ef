"""Files of rows: the same data in every format, a line for whatever is wrong with one, and a run of CSV files alone."""

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from numpy.testing import assert_allclose, assert_array_equal
from processes import Finished, command

from diffad_jax import detector, runs
from diffad_jax.data.adbench import adbench
from diffad_jax.data.loading import load
from diffad_jax.data.row_files import LIKE_LABELS, labelled, read, unlabelled
from diffad_jax.errors import InputError
from diffad_jax.labelled_sets import to_test
from diffad_jax.score_table import scores_in

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
NAMES = ("length", "width", "a, b")


def table(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose digits matter, the last quarter of them anomalies."""
    y = (np.arange(count) >= 0.75 * count).astype(int)
    return (RNG.normal(size=(count, 3)) + 4.0 * y[:, None]) * [1, 10, 100], y


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
    path.write_text('"a", "y"\n1, True \n2.5, false\n')
    stored = read(path)
    assert stored.columns == ("a",)
    assert_array_equal(stored.X, [[1], [2.5]])
    assert_array_equal(stored.y, [1, 0])
    path.write_text("1,TRUE\n2,FALSE\n")
    assert_array_equal(read(path).X, [[1, 1], [2, 0]])
    path.write_text("pos_y,class_size,labelled_at\n1,2,3\n")
    assert read(path).columns == ("pos_y", "class_size", "labelled_at")
    path = tmp_path / "SHOUTED.CSV"
    path.write_text('\n"len\ngth",width\n' + "1,2\n" * 8)
    assert read(path).columns == ("len\ngth", "width")
    assert_array_equal(read(path).X, [[1, 2]] * 8)
    assert len(load({"name": "adbench_folder", "path": str(path)})) == 1


@pytest.mark.parametrize(
    "name", ["y", "Y", "class", "Target", "label", "LABELS", "true_label", "is_anomaly", "anomalies"]
)
def test_what_looks_like_labels_is_not_learnt(name: str) -> None:
    assert LIKE_LABELS.fullmatch(name)


def test_names_are_labels_by_their_last_word() -> None:
    for name in ("isFraud", "Outlier", "n outliers", "anomalous", "is-outlier", "IsAnomaly"):
        assert LIKE_LABELS.fullmatch(name), name
    for name in (
        "pos_y",
        "classes",
        "class_size",
        "targeted",
        "labelled_at",
        "mislabel",
        "fraud_amount",
        "anomaly_rate",
    ):
        assert not LIKE_LABELS.fullmatch(name), name


def test_pictures_of_one_channel_are_scored_as_such(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.zeros((3, 4, 5)), other=np.ones(2))
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert unlabelled(tmp_path / "A.NPZ")[0].shape == (3, 4, 5, 1)


def test_the_numbers_by_which_data_frames_name_columns_are_names(tmp_path: Path) -> None:
    path = tmp_path / "frame.csv"
    for content, columns, rows in (
        ("0,1,2\n5,6,7\n", ("0", "1", "2"), [[5, 6, 7]]),
        ("0,1,y\n5,6,1\n", ("0", "1"), [[5, 6]]),
        ("0,1,3\n5,6,7\n", (), [[0, 1, 3], [5, 6, 7]]),
        ("0\n5\n", (), [[0], [5]]),
    ):
        path.write_text(content)
        assert read(path).columns == columns
        assert_array_equal(read(path).X, rows)


def test_numbers_that_may_name_the_columns_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wave lengths above what was measured at them; not a row that ascends as others do, or one among the others."""
    values = np.random.default_rng(0).random((30, 3))
    for head, words in [
        ([400.5, 401, 401.5], "bands.csv: the first line, 400.5,401,401.5, ascends as no other"),
        ([401, 400, 402], ""),
        ([1.5, 2.5, 400], ""),
    ]:
        caplog.clear()
        np.savetxt(tmp_path / "bands.csv", [head, *values[:, ::-1].cumsum(axis=1)[:, ::-1]], "%g", ",")
        assert read(tmp_path / "bands.csv").X.shape == (31, 3)
        assert words in caplog.text and bool(caplog.records) == bool(words)
    caplog.clear()
    np.savetxt(tmp_path / "counts.csv", [[400.5, 401, 401.5], *values.cumsum(axis=1)], "%g", ",")
    read(tmp_path / "counts.csv")
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,red\n", "line 3: found 'red' in column 'b', allowed are numbers"),
        ("a,b\n1,2\n,4\n", "line 3: found '' in column 'a', allowed are numbers"),
        ("1,2\n3,4\n5\n", "line 3 has 1 cells, expected are the 2 of the first"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells, expected are the 2 of the first"),
        ("1,2\n3,red\n", "line 2: found 'red' in column '1', allowed are numbers"),
        ("a,b\n1,2#x\n", "line 2: found '2#x' in column 'b'"),
        ("1.5,NA\n2,3\n", "the first line holds '1.5' beside words; name every column by a word, or fill gaps"),
        ("0,1\n1,1\n", "the first line, 0,1, may be names or values"),
        ("y\n1\n0\n", "holds y alone"),
        ('"a,b\n' + "1,2\n" * 50_000, "line 3.*: cannot be read .field larger than"),
        ("a,b\n1," + "2" * 200_000 + "x\n", "line 2: cannot be read .field larger than"),
        ("a,b\n1,2_000\n", "line 2: found '2_000' in column 'b', allowed are numbers"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells, expected are the 2 of the first"),
        ("a,b,y\n1,2\n3,4\n", "line 2 has 2 cells, expected are the 3 of the first"),
        ('"a","y"\n"1",0.5,1\n"2",0.7,0\n', "line 2 has 3 cells, expected are the 2 of the first"),
        (",a,b\n0,1,2\n", r"column 0 has no name; .*index=False"),
        (",0,1,2\n0,5,6,7\n", r"column 0 has no name; .*index=False"),
        ("a,,b\n0,1,2\n", "column 1 has no name"),
        ("a,b,a\n1,2,3\n", "column 2 has the name 'a' of another"),
        ("a,Label\n1,0\n", "column 'Label' looks like labels; call it y"),
        ("a,Y\n1,0\n", "column 'Y' looks like labels; call it y"),
        ("a,is_fraud\n1,0\n", "column 'is_fraud' looks like labels; call it y"),
        ("a,isfraud\n1,0\n", "column 'isfraud' looks like labels; call it y"),
        ("a,FraudFound_P\n1,0\n", "column 'FraudFound_P' looks like labels; call it y"),
        ("a,ground_truth\n1,0\n", "column 'ground_truth' looks like labels; call it y"),
        ("a,is_normal\n1,0\n", "column 'is_normal' looks like labels; put 1 - it as y in its place"),
        ("a,Outlier_label\n1,0\n", "column 'Outlier_label' looks like labels; call it y"),
        ("a;b\n1,5;2\n", "looks parted by ';'; allowed are cells parted by commas, and points within numbers"),
        ("a\tb\n1\t2\n", r"looks parted by '\\t'; allowed are cells parted by commas"),
        ("\n1,2,3\n\n4,5\n", "line 4 has 2 cells, expected are the 3 of the first"),
        ("a,b\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_what_is_no_table_of_numbers_is_told_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"rows\.csv: {message}") as caught, warnings.catch_warnings(action="error"):
        read(path)
    assert "\n" not in str(caught.value)


def test_columns_that_hardly_are_values_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).normal(size=(40, 2))
    for names, columns, words in [
        (["a", "b", "failure"], [*values.T, np.arange(40) % 2], "learns 'failure', of 0 and 1"),
        (["a", "b", "on"], [*values.T, np.arange(40) % 2], "learns 'on', of 0 and 1"),
        (["Machine failure", "a", "b"], [np.arange(40) % 2, *values.T], "learns 'Machine failure', of 0 and 1"),
        (["attack", "a", "b"], [values[:, 0], *values.T], ""),
        (["id", "a", "b"], [np.arange(1, 41), *values.T], "learns column 'id', which counts the rows"),
        (["on", "a", "b"], [np.arange(40) % 2, *values.T], ""),
    ]:
        caplog.clear()
        path = save_csv(tmp_path / "odd.csv", names, columns)
        with caplog.at_level("WARNING", "absl"):
            load({"name": "adbench_folder", "path": str(path)})
        assert words in caplog.text and bool(caplog.records) == bool(words)
    np.save(tmp_path / "switches.npy", np.tile([[False, True], [True, True]], (20, 1)))
    caplog.clear()
    with caplog.at_level("WARNING", "absl"):
        load({"name": "adbench_folder", "path": str(tmp_path / "switches.npy")})
    assert not caplog.records, "that change each time and count nothing"
    # Without names too: in a `.csv` of numbers alone, and in an `.npy`.
    labelled_last = np.column_stack([np.arange(40), values[:, 0], np.arange(40) % 2])
    np.savetxt(tmp_path / "bare.csv", labelled_last, delimiter=",")
    np.save(tmp_path / "bare.npy", labelled_last)
    for name in ("bare.csv", "bare.npy"):
        caplog.clear()
        with caplog.at_level("WARNING", "absl"):
            load({"name": "adbench_folder", "path": str(tmp_path / name)})
        assert "learns number 3, of 0 and 1" in caplog.text
        assert "learns column number 1, which counts the rows" in caplog.text


def test_gaps_are_read_where_rows_are_scored_and_refused_where_they_are_learnt(tmp_path: Path) -> None:
    (tmp_path / "gap.csv").write_text("a,b\n1,2\n3,\n5,6\n")
    np.testing.assert_array_equal(unlabelled(tmp_path / "gap.csv")[0], [[1, 2], [3, np.nan], [5, 6]])
    with pytest.raises(InputError, match="gap.csv: line 3: found '' in column 'b'"):
        read(tmp_path / "gap.csv")


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, X=np.ones((3, 2)))
    np.save(tmp_path / "scalar.npy", 3.0)
    with pytest.raises(InputError, match=r"scalar.npy: X has shape \(\)"):
        load({"name": "adbench_folder", "path": str(tmp_path / "scalar.npy")})
    with pytest.raises(InputError, match=r"scalar.npy: X is a single float64 number, allowed are rows"):
        unlabelled(tmp_path / "scalar.npy")
    for name in ("picture.csv", "objects.npy", "archive.npy", "gone.csv", "gone.npy", "gone.npz"):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
        with pytest.raises(InputError, match=Path(name).stem):
            load({"name": "adbench_folder", "path": str(tmp_path / name)})
    with pytest.raises(InputError, match="rows.txt: is no .npz, .npy or .csv file"):
        (tmp_path / "rows.txt").write_text("1,2")
        load({"name": "adbench_folder", "path": str(tmp_path / "rows.txt")})
    with pytest.raises(
        InputError, match=f"{tmp_path}: holds no .npz, allowed is .* one .npz, .npy or .csv by its name"
    ):
        load({"name": "adbench_folder", "path": str(tmp_path)})
    path = save_csv(tmp_path / "fine.csv", NAMES, [*table()[0].T])
    with pytest.raises(InputError, match="config.data.rows: found .'other',., allowed with a file is none"):
        load({"name": "adbench_folder", "path": str(path), "rows": ["other"]})


def assert_reasons(out: Path, X: np.ndarray) -> None:
    """Each row that is called anomalous has its columns in reasons.csv, which score as it says once changed."""
    trained = detector.load(out.parent / "run")
    with (out / "reasons.csv").open() as file:
        reasons = list(csv.DictReader(file))
    scores = trained.score(X)
    assert {int(reason["path"]) for reason in reasons} == set(np.flatnonzero(scores > trained.statistics.threshold))
    places = [(int(reason["path"]), NAMES.index(reason["column"])) for reason in reasons]
    assert len(set(places)) == len(places)
    rows = X[[row for row, _ in places]]
    changed, told = (
        rows.copy(),
        np.array([[float(reason[k]) for k in ("value", "usual", "score")] for reason in reasons]),
    )
    for i, (_, column) in enumerate(places):
        assert rows[i, column] == pytest.approx(told[i, 0], rel=1e-4)
        changed[i, column] = told[i, 1]
    assert_allclose(trained.score(changed), told[:, 2], rtol=1e-2, atol=1e-2)
    before = scores[[row for row, _ in places]]
    assert (told[:, 2] < before).all()
    for i in range(1, len(places)):
        assert places[i - 1][0] < places[i][0] or told[i - 1, 2] <= told[i, 2]


def test_a_run_of_csv_files_scores_the_columns_that_it_has_learnt(tmp_path: Path) -> None:
    def run(name: str, *arguments: str) -> Finished:
        return command(f"experiments.{name}", "--workdir", str(tmp_path / "run"), *arguments, output=tmp_path)

    X, y = table(80)
    normals = save_csv(tmp_path / "normals.csv", NAMES, [*X[:60].T])
    config = "--config", str(ROOT / "configs/adbench.py"), f"--config.data.path={normals}"
    small = "--config.training.num_steps=4", "--config.model.width=8", "--config.scoring.combination=nearest"
    trained = run("train", *config, *small)
    assert trained.code == 0 and "normals: 60 normals of 3 values, nothing to test" in trained.out, trained
    assert "the threshold rests on 12 normals, and needs 19" in trained.err
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

    # Columns go by their names, and others than were learnt are refused.
    turned = save_csv(tmp_path / "turned.csv", (*NAMES[1::-1], "y", NAMES[2]), [X[:, 1], X[:, 0], y, X[:, 2]])
    assert run("score", f"--input={turned}", f"--out={tmp_path / 'turned'}", "--reasons").code == 0
    assert (tmp_path / "turned" / "scores.csv").read_bytes() == (tmp_path / "scores" / "scores.csv").read_bytes()
    assert_reasons(tmp_path / "turned", X)
    assert run("score", f"--input={turned}", f"--out={tmp_path / 'turned'}").code == 0
    assert not (tmp_path / "turned" / "reasons.csv").exists()  # of other rows, it might be
    assert run("evaluate", "--baselines=", f"--data={turned}").code == 0
    first, second = (json.loads((tmp_path / "run" / f"metrics_{name}.json").read_text()) for name in ("test", "turned"))
    assert first["tests"]["test"] == second["tests"]["turned"]
    for names, odd in ((NAMES[:2], f"has no column '{NAMES[2]}'"), ((*NAMES, "depth"), "has a column 'depth'")):
        path = save_csv(tmp_path / "odd.csv", (*names, "y"), [X[:, i % 3] for i in range(len(names))] + [y])
        for finished in (
            run("evaluate", "--baselines=", f"--data={path}"),
            run("score", f"--input={path}", f"--out={tmp_path / 'odd'}"),
        ):
            assert finished.code == 2 and len(finished.err.splitlines()) == 1, finished
            assert "odd.csv" in finished.err and odd in finished.err, finished
    assert not (tmp_path / "odd").exists()
    # Where one side has no names there is nothing to compare.
    nameless = save_csv(tmp_path / "nameless.csv", (), [*X.T])
    assert run("score", f"--input={nameless}", f"--out={tmp_path / 'nameless'}").code == 0
    assert (tmp_path / "nameless" / "scores.csv").read_bytes() == (tmp_path / "scores" / "scores.csv").read_bytes()
    statistics = replace(detector.load(tmp_path / "run").statistics, columns=())
    assert_array_equal(statistics.arranged(X, ("c", "b", "a"), "X"), X)
    plain = load({"name": "adbench_folder", "path": str(normals)})[0]._replace(columns=())
    detector.load(tmp_path / "run").statistics.check_trained_on(plain, "run")
    normals.write_text(normals.read_text().replace("width", "breadth"))
    renamed = run("train", *config, *small)
    assert renamed.code == 2 and "was trained on the columns length, width, a, b; found length, breadth" in renamed.err


def test_a_run_finds_its_rows_where_they_are_now(tmp_path: Path) -> None:
    """Repeating its command with their new place; rows that are others are refused, and the old place stays noted."""
    rows, config = np.random.default_rng(0).normal(size=(60, 3)), tiny.get_config(str(tmp_path / "old" / "a.npy"))
    for folder in ("old", "new", "others"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "old" / "a.npy", rows)
    np.save(tmp_path / "others" / "a.npy", rows + 1)
    config.training.num_steps = 2
    runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    (tmp_path / "old" / "a.npy").rename(tmp_path / "new" / "a.npy")
    trained = detector.load(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"old/a.npy: no such file.*where they have moved, repeat the run's .*train command"
    ):
        to_test(trained)
    before = (tmp_path / "run" / "config.json").read_bytes()
    config.data.path = str(tmp_path / "others" / "a.npy")
    with pytest.raises(InputError, match="was trained on other rows of a than"):
        runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    config.data.path = str(tmp_path / "new" / "a.npy")
    runs.train(config, load(config.data)[0], tmp_path / "run", progress=False)
    moved = detector.load(tmp_path / "run")
    assert moved.trained_on(load(moved.config.data)).name == "a"
    # What was scored before goes on, too.
    with scores_in(tmp_path / "out", trained, tmp_path / "new"):
        pass
    with scores_in(tmp_path / "out", moved, tmp_path / "new"):
        pass


def test_sets_whose_results_would_have_one_file_name_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    for name in ("a b", "a-b", "c"):
        np.savez(tmp_path / f"{name}.npz", X=rows, y=np.arange(40) % 2)
    with pytest.raises(InputError, match="config.data: sets have one file name, a b, a-b;"):
        load({"name": "adbench_folder", "path": str(tmp_path)})
