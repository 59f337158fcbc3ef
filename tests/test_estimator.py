"""The estimator keeps scikit-learn's promises, gives the table's scores, and flags as many new normals as asked."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]
from absl import logging
from sklearn.utils.estimator_checks import check_estimator

from diffad_jax import baselines, estimator, methods
from diffad_jax.errors import InputError
from diffad_jax.estimator import DiffusionDetector
from diffad_jax.methods import detect

WIDTH = 20


@pytest.fixture
def few_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the trainings."""
    monkeypatch.setattr(estimator, "FOLDS_OF_FEW", 3)


def normals(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)) @ np.diag(np.linspace(0.1, 3, WIDTH))


def shares_flagged(method: str, false_alarms: float) -> tuple[float, float]:
    """Of new normals, and of anomalies, after 100 normals of 20 columns."""
    detector = DiffusionDetector(method, false_alarms=false_alarms).fit(normals(100))
    return tuple((detector.predict(rows) == -1).mean() for rows in (normals(4000, 1), normals(400, 2) + 1.5))


def passes_the_checks_of_scikit_learn(method: str) -> None:
    skipped = {"check_array_api_input", "check_classifier_data_not_an_array"}  # for want of what they need
    found = check_estimator(DiffusionDetector(method), on_skip=None)
    assert {one["check_name"] for one in found if one["status"] != "passed"} <= skipped
    assert len(found) > 40


def test_it_passes_the_checks_of_scikit_learn(few_folds: None) -> None:
    passes_the_checks_of_scikit_learn("ours")


@pytest.mark.slow
def test_a_method_that_trains_passes_the_checks_of_scikit_learn(few_folds: None) -> None:
    passes_the_checks_of_scikit_learn("ddpm")


def test_scores_are_those_of_the_table_with_their_sign_turned() -> None:
    train, test = normals(60), normals(30, 1)
    detector = DiffusionDetector(random_state=3).fit(train)
    np.testing.assert_array_equal(detector.score_samples(test), -detect("ours", train, test).scores)


def test_folds_and_networks_are_drawn_by_random_state(few_folds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "TIME_ESTIMATION", methods.TIME_ESTIMATION._replace(num_steps=100))
    first, again, other = (DiffusionDetector("dte_c", random_state=seed).fit(normals(12)) for seed in (0, 0, 1))
    rows = normals(9, 1)
    np.testing.assert_array_equal(first.scores_, again.scores_)
    assert not np.allclose(first.scores_, other.scores_)
    assert not np.allclose(first.score_samples(rows), other.score_samples(rows))


@pytest.mark.slow
def test_of_few_rows_the_threshold_is_of_detectors_that_know_nearly_all() -> None:
    """Of 150 rows about 20 topics a fifth tells much: to what was fitted without it these rows are stranger than new ones."""
    topics = np.random.default_rng(0).normal(size=(20, 300)) / 300**0.5

    def flagged(seed: int) -> float:
        draw = np.random.default_rng(seed)
        train, new = (topics[draw.integers(20, size=n)] + 0.02 * draw.normal(size=(n, 300)) for n in (150, 2000))
        return float((DiffusionDetector(false_alarms=0.1).fit(train).predict(new) == -1).mean())

    # By fifths 0.016.
    assert 0.05 < np.mean([flagged(seed) for seed in range(1, 6)]) < 0.13


@pytest.mark.parametrize("false_alarms", [0.05, 0.2])
def test_new_normals_are_called_anomalous_as_often_as_asked(false_alarms: float) -> None:
    flagged, hits = shares_flagged("ours", false_alarms)
    assert 0.4 * false_alarms < flagged < 1.6 * false_alarms  # 100 normals know a quantile no better
    assert hits > 0.9


def test_of_rows_that_it_knows_none_is_called_anomalous() -> None:
    """Four flags, each set in a tenth: nearly all rows are copies, to detectors fitted on other rows as well."""

    def flags(count: int, seed: int) -> np.ndarray:
        return (np.random.default_rng(seed).random((count, 4)) < 0.1).astype(float)

    for seed in (5, 6, 7):
        fitted = DiffusionDetector().fit(flags(1100, seed))
        assert (fitted.predict(flags(2000, 9)) == -1).mean() < 0.08
        assert fitted.predict(np.full((1, 4), 0.5)) == -1


def test_anomalies_among_the_rows_are_left_out_where_they_are_expected(few_folds: None) -> None:
    """A group of twelve, alike, so that each is near another one: only its like among the rows makes it usual."""

    def group(count: int, seed: int) -> np.ndarray:
        return 2.5 * np.linspace(0.1, 3, WIDTH) + 0.1 * normals(count, seed)

    rows, new = np.concatenate([normals(388), group(12, 1)]), normals(2000, 2)
    careless, careful = DiffusionDetector().fit(rows), DiffusionDetector(suspected=0.03).fit(rows)
    assert (careless.predict(group(200, 3)) == -1).mean() < 0.25
    assert (careful.predict(group(200, 3)) == -1).mean() > 0.9
    # The threshold is that of normals: 12 rows of the 400 do not count, of whichever kind they are.
    assert (careful.predict(new) == -1).mean() < 0.09
    assert careful.scores_.shape == (400,) and np.mean(careful.scores_ < careful.offset_) == pytest.approx(
        0.08, abs=0.01
    )
    # Wherever they stand, in whatever unit: the forest's trees take what varies by 1e-7 for constant.
    for unit, offset in ((1.0, 0.0), (1e-9, 0.0), (1.0, 1.7e9)):
        learnt = baselines.trusted(unit * rows[::-1] + offset, 12, 0)
        assert learnt.sum() == 376 and not learnt[:12].any()
    assert baselines.trusted(rows, 0, 0).all()


def test_a_ruinous_record_is_told_once(few_folds: None, caplog: pytest.LogCaptureFixture) -> None:
    rows = normals(100)
    rows[70] = -999
    # In two threads as well, whose folds overlap; of a third nothing is hidden.
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda _: DiffusionDetector().fit(rows), range(2)))
    assert [record.args[-1] for record in caplog.records if "lie so far off" in record.msg] == [70, 70]
    logging.warning("heard")
    assert caplog.records[-1].msg == "heard"


def test_the_columns_that_make_a_row_strange_are_told() -> None:
    """A temperature that follows the load, a pressure, a small vibration: too warm for the load, or too much of another."""

    def machines(count: int, seed: int) -> np.ndarray:
        draw = np.random.default_rng(seed)
        load = draw.uniform(0, 100, count)
        warm = 20 + 0.6 * load + draw.normal(size=count)
        return np.c_[load, warm, draw.normal(1e5, 500, count), draw.normal(0.05, 0.01, count)]

    rows, train = machines(3, 1), machines(1500, 0)
    rows[0, 1], rows[1, 3], rows[2, 2] = rows[0, 1] + 20, rows[1, 3] + 0.1, rows[2, 2] - 5000
    detector = DiffusionDetector().fit(train)
    assert (detector.predict(rows) == -1).all()
    found, values = detector.reasons(rows)
    print(found, values, rows, detector.score_samples(rows), detector.offset_)
    assert list(found.argmax(axis=1)) == [1, 3, 2]
    assert [part.shape for part in detector.reasons(rows[:0])] == [(0, 4)] * 2, "none were flagged"


def test_a_network_s_threshold_is_of_normals_that_it_has_not_seen(few_folds: None) -> None:
    flagged, hits = shares_flagged("dte_c", 0.1)
    assert flagged < 0.16 and hits > 0.9


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"method: found 'our'; did you mean 'ours'\?"):
        DiffusionDetector("our").fit(normals(20))
    for rate in (0, 0.6, -1, "5%"):
        with pytest.raises(InputError, match=f"false_alarms: found {rate!r}, allowed are numbers above 0"):
            DiffusionDetector(false_alarms=rate).fit(normals(20))
    for share in (-0.1, 0.3, "auto"):
        with pytest.raises(InputError, match=f"suspected: found {share!r}, allowed are numbers from 0 up to 0.25"):
            DiffusionDetector(suspected=share).fit(normals(20))
    assert DiffusionDetector(suspected=np.float32(0.25)).fit(normals(8)).predict(normals(8)).shape == (8,)
    large = normals(30)
    large[20, 1] = 1e39
    with pytest.raises(InputError, match=r"1 of 30 rows are not finite as float32 \(first: row 20\)"):
        DiffusionDetector().fit(large)
    with pytest.raises(ValueError, match="minimum of 8 is required"):
        DiffusionDetector().fit(normals(7))


def test_the_threshold_of_rows_in_the_order_of_time_comes_from_runs_of_them() -> None:
    """Five sensors, of which each value is nine tenths of the one before; of new normals 5 % are to be called anomalous."""

    def called(ordered: bool, count: int = 1000, memory: float = 0.9, seed: int = 0) -> float:
        noise = np.random.default_rng(seed).normal(size=(count + 2000, 5))
        series = scipy.signal.lfilter([1.0], [1.0, -memory], noise, axis=0)
        return float((DiffusionDetector(ordered=ordered).fit(series[:count]).predict(series[count:]) == -1).mean())

    assert called(True) < 0.1 < 0.2 < called(False)
    # Of few rows too the runs are long: those of a twentieth would have their like beside them.
    assert np.mean([called(True, 500, 0.97, seed) for seed in range(4)]) < 0.2
