"""Every method on every set of an ADBench folder: the paper's Table 1, measured.

python -m experiments.table1 --data_dir FOLDER --out DIR [--protocol clean|paper] [--seeds N] [--methods A,B] [--rows X,Y]

Writes results.csv and results.json, table.md and table.html with its curves/ into DIR, and run.json and data.json, which
tell what of. A run that was stopped continues; what failed is tried again. Seed 0 keeps the order of the file; each later
seed shuffles the normals before the split and seeds the models.
"""

import hashlib
import os
import platform
import shlex
import sys
from pathlib import Path

import jax
from absl import flags

from diffad_jax import results_file, table, table_report
from diffad_jax.data.adbench import adbench
from diffad_jax.data.dataset import Dataset
from diffad_jax.errors import InputError
from diffad_jax.methods import METHODS, detect
from diffad_jax.metrics import metrics
from experiments import cli

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of ADBench .npz files of X, y.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory for the results.", required=True)
PROTOCOL = flags.DEFINE_enum("protocol", "clean", ["clean", "paper"], "paper resamples small sets, which LEAKS.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)
CHOSEN = flags.DEFINE_list("methods", list(METHODS), "Methods, the columns.")
ROWS = flags.DEFINE_list("rows", [], "Data sets, the rows; all of the folder by default.")


def measure(key: results_file.Key, dataset: Dataset | Exception, out: Path) -> results_file.Row:
    """The row of one (dataset, method, protocol, seed): its metrics, or the cause of its failure."""
    try:
        if isinstance(dataset, Exception):
            raise dataset
        found = detect(key.method, dataset.train, dataset.test, key.seed)
        values = metrics(dataset.labels, found.scores)
        if key.seed == 0:
            table_report.save_curve(table_report.curve_path(out, key), dataset.labels, found.scores)
    except Exception as error:
        return results_file.row(key, {"error": f"{type(error).__name__}: {error}"})
    return results_file.measured(key, dataset, found, values)


def digest(file: Path) -> str:
    """The first half of a file's SHA-256."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32]


def fill(results: results_file.Results, keys: list[results_file.Key], out: Path) -> None:
    """Adds the results of those keys that are not there, one by one, and puts all in order."""
    loaded: dict[tuple[str, int], Dataset | Exception] = {}
    for key in results.missing(keys):
        if (at := (key.dataset, key.seed)) not in loaded:
            loaded.clear()
            try:
                loaded[at] = adbench(DATA_DIR.value, key.dataset, key.protocol, key.seed)
            except Exception as error:
                loaded[at] = error
        results.append(measure(key, loaded[at], out))
    # What a method found that is no longer there stays in the file, and out of the table.
    place = {name: i for i, name in enumerate(METHODS)}
    results.rewrite(
        sorted(
            results.rows,
            key=lambda r: (r["protocol"], r["dataset"], r["seed"], place.get(r["method"], len(place))),
        )
    )


def main(_: list[str]) -> None:
    methods = cli.chosen("methods", CHOSEN.value or [""], METHODS)
    names, protocol, out = cli.chosen_rows(DATA_DIR.value, ROWS.value), PROTOCOL.value, Path(OUT.value)
    data_dir = Path(DATA_DIR.value)
    keys = [results_file.Key(name, m, protocol, seed) for name in names for seed in range(SEEDS.value) for m in methods]
    digests = {name: digest(data_dir / f"{name}.npz") for name in names}
    with results_file.results_in(out, data_dir, digests) as results:
        fill(results, keys, out)
    rows = [row for row in results.rows if row["protocol"] == protocol and row["method"] in METHODS]
    python = f"Python {platform.python_version()}"
    facts = {
        "protocol": protocol + (" (LEAKS: copies of a row in training and test)" if protocol == "paper" else ""),
        "command": shlex.join(["python", "-m", "experiments.table1", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, {python}, JAX {jax.__version__}",
        "seeds": table.seeds_of(rows),
        "training and scoring": f"{table.seconds_of(rows):.0f} s",
    }
    text, summary = table.markdown(rows, list(METHODS), facts), table.summary(rows, list(METHODS), facts)
    table.write(out, summary, text)
    page = table_report.write_page(out, rows, list(METHODS), summary)
    print(f"{text}\ntable: {out / 'table.md'}\npage: {page.resolve()}")
    asked = [row for row in rows if results_file.key_of(row) in keys]
    if all(row["error"] for row in asked):
        raise InputError(f"no method succeeded; the first failed with {asked[0]['error']}")


if __name__ == "__main__":
    cli.run(main)
