"""Scores every picture below a folder, or every row of a file, with a trained detector.

python -m experiments.score --workdir runs/tiles --input photos --out scores [--heat_maps] [--on_error skip|fail]
python -m experiments.score --workdir runs/mine --input rows.csv --out scores [--reasons]

A file is an `.npz` of X, an `.npy` or a `.csv`, and the path of a row is its number, from 0. Writes scores.csv into OUT:
path, score, probability (1 - conformal p-value among the training normals, no probability of an anomaly), label (1: anomalous
by the threshold of the normals), and with --heat_maps a PNG for each picture. With --reasons, of rows, also reasons.csv: up
to three columns of each anomalous row that make it strange, the most to blame first, and the score that it would have were
that column alone what it is in normals. Of a folder, a command that was stopped goes on, pictures that have come since are
added, and those that have changed are scored again; the rows of a file are scored anew. What cannot be read, and rows with
gaps or values that are not finite, are listed in unreadable.csv and tried again the next time; with --on_error=fail the first
of them ends the command with exit code 2.
"""

from pathlib import Path

from absl import flags

from diffad_jax import detector
from diffad_jax.data.folders import pictures_and_others
from diffad_jax.data.pictures import ON_ERROR
from diffad_jax.data.row_files import is_row_file
from diffad_jax.errors import InputError
from diffad_jax.folder_scores import score_folder
from diffad_jax.row_scores import score_rows
from experiments import cli

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
INPUT = flags.DEFINE_string(
    "input", None, "Folder of pictures, at any depth, or a file of rows: an .npz of X, .npy or .csv.", required=True
)
OUT = flags.DEFINE_string("out", None, "Directory for the scores.", required=True)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Data scored at once, if not as the config says.", lower_bound=1)
HEAT_MAPS = flags.DEFINE_boolean("heat_maps", False, "Write a heat map of each picture.")
REASONS = flags.DEFINE_boolean("reasons", False, "Write which columns make each anomalous row strange.")
FAULTS = flags.DEFINE_enum(
    "on_error", "skip", ON_ERROR, "What to do about pictures that cannot be read, and rows with gaps."
)


def main(_: list[str]) -> None:
    root, out = Path(INPUT.value), Path(OUT.value)
    of_rows = is_row_file(root) and not root.is_dir()
    if root.is_file() and not of_rows:
        raise InputError(f"--input: {root} is a file, allowed are .npz, .npy and .csv files and folders of pictures")
    if of_rows and HEAT_MAPS.value:
        raise InputError(f"--heat_maps: allowed with a folder of pictures, {root} is a file")
    if REASONS.value and not of_rows:
        raise InputError(f"--reasons: allowed with a file of rows, {root} is a folder")
    trained = detector.load(WORKDIR.value, BATCH_SIZE.value)
    if of_rows:
        counts = score_rows(trained, root, out, FAULTS.value, REASONS.value)
        print(f"scored: {counts.scored} rows: {out / 'scores.csv'}")
    else:
        files, others = pictures_and_others(root)
        counts = score_folder(trained, root, files, out, HEAT_MAPS.value, FAULTS.value)
        print(f"scored: {counts.scored} pictures, {counts.new} of them now: {out / 'scores.csv'}")
        if others:
            shown = ", ".join(f"{suffix or 'without suffix'} {count}" for suffix, count in others.most_common())
            print(f"left out, no pictures by their names: {shown}")
    print(f"anomalous by the threshold of the normals, {trained.statistics.threshold:.6g}: {counts.anomalous}")
    print(f"unreadable: {counts.unreadable}: {out / 'unreadable.csv'}")


if __name__ == "__main__":
    cli.run(main)
