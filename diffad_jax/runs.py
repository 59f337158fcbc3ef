"""A run: one config, one training set, one work directory. The story of training; `detector` uses what it leaves."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import compiler, distributed
from diffad_jax.checkpoint import steps_in
from diffad_jax.console import say
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Chosen, Dataset, Rows, evenly_spaced, fingerprint
from diffad_jax.data.transforms import Transform
from diffad_jax.errors import InputError
from diffad_jax.evaluation import MEMORY, Judge, batch_reader, fit_judge, joined
from diffad_jax.files import folder
from diffad_jax.loop import fit
from diffad_jax.memory import check_enough
from diffad_jax.metrics import threshold
from diffad_jax.noise import key_of, keys_for
from diffad_jax.plan import Plan, check, define
from diffad_jax.ranges import check_sections
from diffad_jax.reasons import usual_values
from diffad_jax.settings import Scoring, fsdp_of, parallel_of, pipeline_of, scoring_of
from diffad_jax.sharding import MIN_SPLIT, Parallel, data_mesh, on, own_rows, split
from diffad_jax.statistics import Statistics
from diffad_jax.training import Loss, Params, TrainState
from diffad_jax.workdir import alone, as_json, flatten, save_config, save_data, save_place

FEW = 19  # normals: of fewer none has the rank of 95 %, see `metrics.threshold`


class Parts(NamedTuple):
    """Which rows of the training set [N, ...] serve what. Each is an array of row numbers."""

    learnt: np.ndarray
    held_out: np.ndarray
    calibrating: np.ndarray
    """On whose scores calibration and threshold rest: those held out, or evenly spaced ones where none are."""


def train(config: ConfigDict, dataset: Dataset, workdir: str | Path, progress: bool = True) -> None:
    """Trains on dataset.train and leaves config, checkpoints, logs and statistics in workdir; continues a run begun there.

    A finished run is left alone. Of several processes all must call this, with the same arguments. Raises InputError, before
    anything is compiled, on what a config may not hold, on a workdir of another run and on one in which another process
    trains; `loop.fit` raises the rest.
    """
    workdir, writes = Path(workdir), jax.process_index() == 0
    with distributed.together():
        told = fingerprint(dataset.train)
    distributed.check_alike({**flatten(as_json(config)), "its training rows": told, **distributed.arithmetic()})
    with distributed.together():
        finished = writes and _finished(config, dataset, workdir)
    if distributed.exchange("finished" if finished else "")[0]:
        return
    with distributed.together():
        check_sections(config)
        scoring, pipeline = scoring_of(config), pipeline_of(config, dataset.train.shape[1:])
        plan = define(config, dataset.train.shape[1:])
        state = jax.eval_shape(plan.init)
        check(plan.system, state.params, dataset.train.shape[1:], scoring.combination)
        parallel = parallel_of(config, plan.settings)
        normals, suspects = _without_suspects(dataset.train, plan.settings.suspected, config.seed)
        parts = _parts(len(normals), plan.settings.validation_rows, scoring)
        learnt = Chosen(normals, parts.learnt, normals.dtype) if len(parts.held_out) else normals
        transform = transforms.fitted(config.transform, learnt)
    distributed.check_shared(workdir)
    if writes:
        _warn(dataset.name, parts, fsdp_of(config), parallel, state)
    with ExitStack() as until_the_end:
        with distributed.together():
            if writes:
                until_the_end.enter_context(alone(workdir))
                save_config(workdir, config)
                with folder(workdir / "checkpoints"):
                    TemporaryFile(dir=workdir / "checkpoints").close()  # raises now, not when the first is to be saved
                if not steps_in(workdir / "checkpoints"):
                    for name in ("data.json", "statistics.npz"):  # Nothing of these data was learnt yet.
                        (workdir / name).unlink(missing_ok=True)
                save_data(workdir, dataset, told)
                save_place(workdir, config)
        if progress and writes and len(suspects):
            say(f"{dataset.name}: {len(suspects)} rows that may be no normals are left out")
        rows = transform.view(normals)
        fitted = fit(
            plan.step,
            plan.init,
            Chosen(rows, parts.learnt) if len(parts.held_out) else rows,
            workdir,
            plan.settings,
            seed=config.seed,
            pipeline=pipeline,
            parallel=parallel,
            validate=make_validate(
                plan.system.held_out_loss,
                _middle(rows[parts.held_out], plan.system.shape),
                config.seed,
                plan.settings.batch_size,
                fsdp_of(config),
            )
            if len(parts.held_out)
            else None,
            progress=dataset.name if progress and writes else None,
        )
        if progress and writes:
            say(f"{dataset.name}: scoring {len(parts.calibrating)} normals, by which others are judged")
        judged = _judge(plan, fitted.state.ema, rows, suspects, parts.calibrating, scoring, config.seed, transform)
        counts = {"n_train": len(parts.learnt), "n_held_out": len(parts.held_out)}
        facts = {**counts, "seconds_train": fitted.seconds, "step": int(fitted.state.step)}
        if writes:
            usual = usual_values(learnt)
            Statistics(transform, *judged, facts, dataset.name, told, usual, dataset.columns).save(workdir)


def _warn(name: str, parts: Parts, fsdp: int, parallel: Parallel, state: TrainState) -> None:
    """Tells of what is no mistake, but may not be what was meant."""
    if fsdp > 1 and all(where.is_fully_replicated for where in jax.tree.leaves(parallel.shardings(state))):
        logging.warning(
            "config.mesh.fsdp: %d splits nothing: no array of %d numbers or more has an axis that it divides",
            fsdp,
            MIN_SPLIT,
        )
    if len(parts.calibrating) < FEW:
        logging.warning(
            "%s: the threshold rests on %d normals, and needs %d: more than 5 %% of new normals may lie above it",
            name,
            len(parts.calibrating),
            FEW,
        )


def _finished(config: ConfigDict, dataset: Dataset, workdir: Path) -> bool:
    """Whether workdir holds this run, finished; raises InputError where it holds another."""
    steps = steps_in(workdir / "checkpoints")
    if (workdir / "config.json").exists():
        save_config(workdir, config)
        if (workdir / "statistics.npz").exists() and steps:
            statistics = Statistics.load(workdir)
            statistics.check_trained_on(dataset, str(workdir))
            save_place(workdir, config)
            return int(statistics.facts["step"]) in steps
    elif steps:
        raise InputError(f"{workdir}: holds checkpoints but no config.json to tell of what; choose another workdir")
    return False


def make_validate(loss: Loss, x_0: np.ndarray, seed: int, batch_size: int, fsdp: int = 1) -> Callable[[Params], Array]:
    """Parameters -> mean loss on the rows x_0 [N, ...], with the same noise each time.

    The rows are taken round and round until they fill whole batches; u_i = i phi mod 1 spreads the noise levels evenly over
    them in any order. fsdp: config.mesh.fsdp, so that the devices are those which hold the parameters.
    """
    count = -(-len(x_0) // batch_size)
    place = np.arange(count * batch_size)
    u = np.asarray(place * (5**0.5 - 1) / 2 % 1, np.float32)
    key = jax.random.fold_in(key_of(seed), len(x_0))
    mesh = data_mesh(batch_size, fsdp)
    compiled = compiler.jit(on(mesh, lambda params, x, u, place: loss(params, x, u, keys_for(key, place)).mean()))

    def validate(params: Params) -> Array:
        parts = np.split(place, count)
        mine = (part[own_rows(batch_size)] for part in parts)
        losses = [compiled(params, *split((x_0[i % len(x_0)], u[i], i), mesh)) for i in mine]
        return sum(losses, jnp.zeros(())) / count

    return validate


def _middle(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The middle of pictures x [N, H, W, C] where a datum of the network is smaller."""
    if x.shape[1:] == shape:
        return x
    top, left = (have - want for have, want in zip(x.shape[1:3], shape[:2], strict=True))
    return x[:, top // 2 : top // 2 + shape[0], left // 2 : left // 2 + shape[1]]


def _without_suspects(train: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """The training rows [N, D] that are trusted where a share may be no normals, and the others, see `baselines.trusted`.

    Raises InputError on pictures, of whose pixels an isolation forest knows nothing.
    """
    if share and len(train.shape) != 2:
        raise InputError(f"config.training.suspected: found {share}, allowed with pictures is 0")
    if not (suspects := round(share * len(train))):
        return train, np.zeros((0, *train.shape[1:]), train.dtype)
    from diffad_jax import baselines  # here: scikit-learn takes half a second to import

    trusted = baselines.trusted(train, suspects, seed)
    return train[np.flatnonzero(trusted)], train[np.flatnonzero(~trusted)]


def _judge(
    plan: Plan,
    params: Params,
    rows: Rows,
    suspects: Rows,
    calibrating: np.ndarray,
    scoring: Scoring,
    seed: int,
    transform: Transform,
) -> tuple[Judge, float, np.ndarray]:
    """`fit_judge` on transformed rows[calibrating], with as large a share of the raw suspects beside the threshold.

    Of all these scores those of config.training.suspected, the highest, do not count.
    """
    how = scoring.combination, seed, scoring.batch_size
    judge, limit, scores = fit_judge(plan.system, params, rows, calibrating, *how, transform.deviations)
    asked = evenly_spaced(len(suspects), round(len(suspects) * len(scores) / len(rows)))
    if not len(asked):
        return judge, limit, scores
    read = batch_reader(plan.system, params, judge, *how, lambda reading: reading.scores)
    theirs = joined(read, transform.view(suspects[asked]), scoring.batch_size)
    both = np.sort(np.concatenate([scores, theirs]))
    counted = both[: len(both) - round(plan.settings.suspected * len(both))]
    return judge, threshold(counted), counted


def _parts(count: int, wanted: float, scoring: Scoring) -> Parts:
    """The parts of `count` rows, of which `wanted`, or a share, up to the calibration rows, are to be held out.

    Raises InputError where that is one row or more than half, and where too few calibrate a memory.
    """
    number = min(round(wanted * count), scoring.calibration_rows) if wanted < 1 else int(wanted)
    if wanted and not 2 <= number <= count // 2:
        raise InputError(
            f"config.training.validation_rows: found {wanted:g}, which is {number} of {count} rows; allowed are 0, and from "
            "2 rows to half of them"
        )
    held_out = evenly_spaced(count, number)
    calibrating = held_out if number else evenly_spaced(count, scoring.calibration_rows)
    if scoring.combination == MEMORY:
        check_enough(len(calibrating))
    return Parts(np.setdiff1d(np.arange(count), held_out), held_out, calibrating)
