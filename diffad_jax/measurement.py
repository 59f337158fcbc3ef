"""What a trained run finds in labelled test sets, and how well that tells anomalies: metrics, and results for a report."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffad_jax.calibration import COMBINATIONS
from diffad_jax.data.dataset import Dataset
from diffad_jax.detector import Trained
from diffad_jax.figures import Pictures
from diffad_jax.metrics import above_threshold, metrics
from diffad_jax.pixel_metrics import aupro, pixel_auroc
from diffad_jax.report import Result, most_and_least

PICTURES_PER_KIND = 3


class Measured(NamedTuple):
    """Scores [M] of a test set, errors [M] where the score is another than these (see `evaluation.Reading`), and measures of
    its heat maps where there are masks.
    """

    dataset: Dataset
    scores: np.ndarray
    errors: np.ndarray | None
    pixel: dict[str, float] | None = None

    @property
    def figures(self) -> dict[str, float]:
        """`metrics` of the scores, the mean error's AUROC where the score is another, and the measures of heat maps."""
        found = metrics(self.dataset.labels, self.scores)
        if self.errors is not None:
            found["auroc_of_mean_error"] = metrics(self.dataset.labels, self.errors)["auroc"]
        return {**found, **(self.pixel or {}), "n_test": len(self.dataset.test)}


def measure(trained: Trained, datasets: Sequence[Dataset]) -> tuple[list[Measured], float]:
    """What the detector finds in each test set, and the seconds that it took."""
    started = time.perf_counter()
    if any(dataset.masks is not None for dataset in datasets):
        found = [_with_maps(trained, dataset) for dataset in datasets]
    else:
        each = trained.score_each([dataset.test for dataset in datasets])
        found = [Measured(dataset, *pairs.T) for dataset, pairs in zip(datasets, each, strict=True)]
    judged = COMBINATIONS.get(trained.scoring.combination)
    if judged is None or judged.errors_alone:  # None: by the memory, whose scores are the errors
        found = [one._replace(errors=None) for one in found]
    return found, time.perf_counter() - started


def _with_maps(trained: Trained, dataset: Dataset) -> Measured:
    scores, maps, errors = (np.concatenate(parts) for parts in zip(*trained.read(dataset.test), strict=True))
    if dataset.masks is None or maps.ndim != 3:
        return Measured(dataset, scores, errors)
    masks = np.asarray(dataset.masks)
    return Measured(dataset, scores, errors, {"pixel_auroc": pixel_auroc(masks, maps), "aupro": aupro(masks, maps)})


def summary(trained: Trained, measured: Sequence[Measured], seconds: float) -> dict[str, Any]:
    """What metrics.json holds: the mean figures of the test sets, what they rest on, and under "tests" those of each."""
    facts, threshold = trained.statistics.facts, trained.statistics.threshold
    tests = {
        one.dataset.name: one.figures | above_threshold(one.dataset.labels, one.scores, threshold) for one in measured
    }
    return {
        **{key: float(np.mean([test[key] for test in tests.values()])) for key in next(iter(tests.values()))},
        "n_train": int(facts["n_train"]),
        "n_test": sum(len(one.dataset.test) for one in measured),
        "seed": trained.config.seed,
        "seconds_train": facts["seconds_train"],
        "seconds_score": seconds,
        "network_evaluations_per_datum": trained.system.score.evaluations,
        "tests": tests,
    }


def result(trained: Trained, measured: Measured, beside: Mapping[str, np.ndarray], source: Mapping[str, str]) -> Result:
    """What a report shows of a test set; beside: the scores [M] of other detectors; source: facts of where the data lie."""
    dataset, network, kept = measured.dataset, trained.config.model.name, trained.statistics
    judged = COMBINATIONS.get(trained.scoring.combination)
    by_method = {"nearest normals" if judged and not judged.network else f"diffusion ({network})": measured.scores}
    if measured.errors is not None:
        by_method[f"mean error ({network})"] = measured.errors
    facts = {
        "training normals": int(kept.facts["n_train"]),
        "test": len(dataset.test),
        "seed": trained.config.seed,
        **source,
    }
    if held_out := int(kept.facts.get("n_held_out", 0)):
        facts["normals held out for the threshold"] = held_out
    shape = dataset.test.shape
    shown = _pictures(trained, measured) if len(shape) == 4 and shape[3] in (1, 3) else None
    methods = {**by_method, **beside}
    return Result(dataset.name, dataset.labels, methods, kept.threshold, shown, facts, dataset.groups, measured.pixel)


def _pictures(trained: Trained, measured: Measured) -> Pictures:
    """The pictures most worth looking at, with their noised and reconstructed versions and error maps."""
    dataset, scores = measured.dataset, measured.scores
    chosen = most_and_least(scores, dataset.labels, PICTURES_PER_KIND)
    x_0, x_t, reconstruction, error = trained.explain(dataset.test[chosen])
    masks = None if dataset.masks is None else dataset.masks[chosen]
    return Pictures(x_0, x_t, reconstruction, error, dataset.labels[chosen], scores[chosen], masks)
