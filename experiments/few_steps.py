"""How few steps suffice: the full ancestral chain against short reconstructions with one trained model.

python -m experiments.few_steps --workdir DIR [--time 0.46] [--chain 250] [--steps 50,10,5,1] [--rows 500] [--out FILE.json]

Pictures are noised to the time t* and reconstructed in `chain` steps by ancestral sampling, and in fewer by DDIM, with the
same noise; each way of scoring is calibrated on the same training normals. Prints AUROC and pictures per second of each.
"""

import time
from pathlib import Path

import numpy as np
from absl import flags

from diffad_jax import detector
from diffad_jax.assembly import assemble
from diffad_jax.data.dataset import evenly_spaced
from diffad_jax.data.loading import load
from diffad_jax.errors import InputError
from diffad_jax.evaluation import fit_calibration, make_levels
from diffad_jax.files import save_json
from diffad_jax.metrics import metrics
from diffad_jax.settings import scoring_of
from diffad_jax.statistics import Statistics
from experiments import cli

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a finished run.", required=True)
TIME = flags.DEFINE_float("time", 0.46, "The time t* to which data are noised, above 0.", upper_bound=1.0)
CHAIN = flags.DEFINE_integer("chain", 250, "Steps of the ancestral chain.", lower_bound=1)
STEPS = flags.DEFINE_list("steps", ["50", "10", "5", "1"], "Numbers of DDIM steps.")
ROWS = flags.DEFINE_integer("rows", 500, "Test data to score at most, evenly spaced.", lower_bound=2)
OUT = flags.DEFINE_string("out", None, "File for the figures as JSON.")
CALIBRATION_ROWS = 64


def with_steps(trained: detector.Trained, sampler: str, num_steps: int, normals: np.ndarray) -> detector.Trained:
    """The same model under the paper's score with that sampler, calibrated on raw normals."""
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.sampler = {"name": sampler}
        config.score = {"name": "reconstruction", "times": (TIME.value,), "num_steps": num_steps}
        config.scoring.combination = "standardised_mean"
    transform, settings = trained.statistics.transform, scoring_of(config)
    system = assemble(config, transform.shape)
    levels = make_levels(system, trained.params, config.seed, settings.batch_size)(transform.apply(normals))
    own = trained.statistics
    statistics = Statistics(
        transform, *fit_calibration(levels, settings.combination), {}, own.dataset, own.rows, own.usual
    )
    return detector.Trained(config, system, trained.params, statistics)


def main(_: list[str]) -> None:
    few = cli.counts("steps", STEPS.value)
    if TIME.value <= 0:
        raise InputError(f"--time: found {TIME.value:g}, allowed are times above 0 up to 1")
    cli.check_file("out", OUT.value)
    trained = detector.load(Path(WORKDIR.value))
    dataset = trained.trained_on(load(trained.config.data))
    places = evenly_spaced(len(dataset.test), ROWS.value)
    test, labels = dataset.test[places], dataset.labels[places]
    if len(set(labels.tolist())) < 2:
        raise InputError(
            f"--rows: of {len(labels)} evenly spaced test data all are labelled {labels[0]}; allowed are more"
        )
    normals = dataset.train[evenly_spaced(len(dataset.train), CALIBRATION_ROWS)]
    found: dict[str, dict[str, float]] = {}
    for sampler, count in [("ddpm", CHAIN.value), *(("ddim", steps) for steps in few)]:
        changed = with_steps(trained, sampler, count, normals)
        changed.score(test[:1])  # Compiles.
        started = time.perf_counter()
        scores = changed.score(test)
        rate = len(test) / (time.perf_counter() - started)
        found[f"{sampler} {count}"] = {"auroc": metrics(labels, scores)["auroc"], "pictures_per_second": rate}
    slowest = next(iter(found.values()))["pictures_per_second"]
    for name, values in found.items():
        rate = values["pictures_per_second"]
        print(f"{name:10} AUROC {100 * values['auroc']:.2f}  {rate:.1f} pictures/s, {rate / slowest:.1f}x")
    if OUT.value:
        save_json(Path(OUT.value), found)


if __name__ == "__main__":
    cli.run(main)
