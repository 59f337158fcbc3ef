"""Scores test data with trained detectors, beside classical baselines, and writes metrics.json and report.html.

python -m experiments.evaluate --workdir runs/digits [--data other.npz] [--baselines iforest,ocsvm,copod,knn,knn_raw]

Without --data the test sets of the run's own config are scored. PATH in --data: an `.npz` of X, y (0 normal, 1 anomaly), a
`.csv` with a column y, or a folder with sub-folders of pictures, `good` the normal one, read as the training pictures were;
results then go to metrics_<name of PATH>.json and report_<name of PATH>.html.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from absl import flags

from diffad_jax import baselines, detector, workdir
from diffad_jax.console import say
from diffad_jax.data.dataset import Dataset, fingerprint
from diffad_jax.distributed import check_alike, together
from diffad_jax.errors import InputError
from diffad_jax.files import read_json, save_json
from diffad_jax.labelled_sets import NothingToTest, check_other, name_of, to_test
from diffad_jax.measurement import measure, result, summary
from diffad_jax.report import Result, summary_table, threshold_lines, write_report
from diffad_jax.statistics import check_finished
from experiments import cli

cli.distributed_flags()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run, or of several.", required=True)
DATA = flags.DEFINE_string(
    "data", None, "Other labelled data to score: an .npz of X, y, a .csv with a column y, or a folder of pictures."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Data scored at once, if not as the config says.", lower_bound=1)
BASELINES = flags.DEFINE_list(
    "baselines",
    ["iforest", "ocsvm", *(["copod"] if find_spec("pyod") else []), "knn", "knn_raw"],
    "Classical detectors to stand beside, held in memory; by default copod only where PyOD is installed, and none of "
    "data of more than 2^28 values.",
)
MOST_VALUES = 2**28  # take 3.5 GB: about 13 bytes each


def evaluate_run(directory: Path) -> list[Result]:
    """Scores every test set of one run, writes its metrics.json and returns what the report shows.

    Raises NothingToTest where the run's data, without --data, are not of both kinds.
    """
    trained = detector.load(directory, BATCH_SIZE.value)
    with together():
        datasets = to_test(trained, Path(DATA.value) if DATA.value else None, training=bool(BASELINES.value))
        baselines.check_width(BASELINES.value, math.prod(trained.statistics.transform.shape))
    check_alike({f"{directory}, {dataset.name}": fingerprint(dataset.test) for dataset in datasets})
    if jax.process_index() == 0:
        say(f"{directory}: scoring {sum(len(dataset.test) for dataset in datasets)} test data")
    try:
        measured, seconds = measure(trained, datasets)
    except InputError as error:
        if not DATA.value:
            raise
        raise InputError(f"{DATA.value}: {error}") from error
    if jax.process_index() == 0:
        save_json(directory / f"metrics{suffix()}.json", summary(trained, measured, seconds) | source())
    return [result(trained, one, beside(one.dataset, trained.config.seed), source()) for one in measured]


def beside(dataset: Dataset, seed: int) -> dict[str, np.ndarray]:
    """The scores of the baselines; none of a data set of more than MOST_VALUES, unless the flag asks for them."""
    names = dict.fromkeys(BASELINES.value)
    if not names or jax.process_index() > 0:
        return {}
    values = math.prod(dataset.train.shape) + math.prod(dataset.test.shape)
    if values > MOST_VALUES and flags.FLAGS["baselines"].using_default_value:
        print(
            f"{dataset.name}: no baselines, which would hold {values:,} values in memory; --baselines=... asks for them"
        )
        return {}
    train, test = np.asarray(dataset.train), np.asarray(dataset.test)
    return {name: baselines.fit_score(name, train, test, seed) for name in names}


def suffix() -> str:
    """What sets the files of other data apart from those of the run's own test sets."""
    return f"_{name_of(Path(DATA.value))}" if DATA.value else ""


def source() -> dict[str, str]:
    """Where --data lies, which its name alone does not tell."""
    return {"data": str(Path(DATA.value).resolve())} if DATA.value else {}


def check_overwrites(directory: Path) -> None:
    """Raises InputError where results of other data than --data, of the same name, would be overwritten."""
    path = directory / f"metrics{suffix()}.json"
    held = read_json(path).get("data") if path.exists() else None
    if held not in (None, source()["data"]):
        raise InputError(f"{path}: holds the results of {held}; rename it, or what --data names")


def told_apart(results: Mapping[Path, Sequence[Result]]) -> list[Result]:
    """The results of all runs; where several scored data of one name, that of the run stands before it."""
    count = Counter(result.name for found in results.values() for result in found)
    return [
        result._replace(name=f"{directory.name} on {result.name}") if count[result.name] > 1 else result
        for directory, found in results.items()
        for result in found
    ]


def config_of(directories: Sequence[Path]) -> dict[str, str]:
    """{"config.key": value}, with the values of all runs where they differ."""
    configs = [workdir.flatten(workdir.load_config(directory).to_dict()) for directory in directories]
    keys = dict.fromkeys(key for config in configs for key in config)
    return {key: " | ".join(dict.fromkeys(str(c.get(key, "-")) for c in configs)) for key in keys}


def main(_: list[str]) -> None:
    root = Path(WORKDIR.value)
    with together():
        baselines.check_installed(cli.chosen("baselines", BASELINES.value, baselines.BASELINES))
        directories = (
            [root] if (root / "config.json").exists() else sorted(p.parent for p in root.glob("*/config.json"))
        )
        if not directories:
            raise InputError(f"--workdir: {root} holds no run (no config.json there or one level below)")
        for directory in directories:  # Told before anything is scored.
            check_finished(directory)
            if not os.access(directory, os.W_OK):
                raise InputError(f"{directory}: cannot be written to, and is where metrics.json goes")
            if DATA.value:
                check_other(Path(DATA.value), directory)
                check_overwrites(directory)
    asked = {f"--{flag.name}": flag.value for flag in (WORKDIR, DATA, BASELINES, BATCH_SIZE)}
    check_alike({**asked, "runs": [directory.name for directory in directories]})
    found: dict[Path, list[Result]] = {}
    for directory in directories:
        try:
            found[directory] = evaluate_run(directory)
        except NothingToTest as nothing:
            if len(directories) == 1:
                raise
            print(f"{directory}: left out; {nothing}")
    if not found:
        raise InputError(f"--workdir: no run of {root} has data of both kinds to test on")
    results, scored = told_apart(found), list(found)
    if jax.process_index() > 0:
        return
    title = f"diffad_jax: {root.name}"
    # Written first: whoever reads what is printed may stop before its end.
    report = write_report(root / f"report{suffix()}.html", title, results, config_of(scored))
    print("\n\n".join(filter(None, [summary_table(results), threshold_lines(results)])))
    shown = ", ".join(str(directory / f"metrics{suffix()}.json") for directory in scored[:3])
    print(f"\nmetrics: {shown}{' ...' if len(scored) > 3 else ''}")
    print(f"report with pictures: {report.resolve()}")


if __name__ == "__main__":
    cli.run(main)
