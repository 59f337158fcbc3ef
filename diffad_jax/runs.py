"""A run: one config, one training set, one work directory. The story of training; `detector` uses what it leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from diffad_jax import compiler, samplers
from diffad_jax.assembly import System, assemble
from diffad_jax.build import build, nearest
from diffad_jax.calibration import COMBINATIONS
from diffad_jax.checkpoint import any_in
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Chosen, Dataset, evenly_spaced, fingerprint
from diffad_jax.data.pipeline import Pipeline
from diffad_jax.errors import InputError
from diffad_jax.evaluation import MEMORY, fit_judge
from diffad_jax.loop import fit
from diffad_jax.memory import MIN_NORMALS, local_statistics
from diffad_jax.noise import keys_for
from diffad_jax.ranges import check_ranges, check_sections
from diffad_jax.sharding import Parallel, by_jit, by_pmap, data_mesh, mean_over_devices, on, own, split
from diffad_jax.training import Loss, Params, TrainState, init_state, make_optimizer, make_train_step
from diffad_jax.workdir import Statistics, save_config, save_data


class Training(NamedTuple):
    """config.training: how long, in what portions, and what is averaged. See `loop.fit` and `training.make_train_step`.

    validation_rows: evenly spaced training rows that are held out, also of the transform's fit: on them every checkpoint's
    averaged parameters get a loss, and scores are calibrated. A number below 1 is a share of the rows, of which no more than
    scoring.calibration_rows are taken. keep: the checkpoint that becomes the model, "last" or "best" by that loss.
    """

    num_steps: int
    batch_size: int = 64
    steps_per_dispatch: int = 1
    ema_decay: float = 0.999
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    validation_rows: float = 0
    keep: str = "last"


class Scoring(NamedTuple):
    """config.scoring: how scores become one number, and what reports show.

    batch_size: data scored at once. calibration_rows: training normals that the calibration, or the memory, and the threshold
    are fitted on; where config.training.validation_rows holds some out, it is those.
    combination: "standardised_mean", "typicality" or "fisher", see `calibration`, or "memory", see `memory`. "fisher" keeps
    the normals with the run, shrunk as `nearness` compares them and up to 64 MiB.
    smoothing: standard deviation in pixels of the Gaussian that smooths heat maps. picture_time, picture_steps: from which
    time, and in how many steps, the reconstructions of a report are made.
    """

    batch_size: int = 256
    calibration_rows: int = 256
    combination: str = "standardised_mean"
    smoothing: float = 0.0
    picture_time: float = 0.5
    picture_steps: int = 10


def define(config: ConfigDict, shape: tuple[int, ...]) -> tuple[System, Callable[[], TrainState], Any, Training]:
    """The system, a pure function that makes the state before the first step, the train step and the training settings.

    Raises InputError, naming the key, on what a config may not hold.
    """
    check_sections(config)
    check_ranges(config)
    system = assemble(config, shape)
    training: Training = build("training", {"Training": Training}, {"name": "Training", **config.training})
    if training.keep not in ("last", "best"):
        raise InputError(f"config.training.keep: found {training.keep!r}, allowed are 'last' and 'best'")
    if training.keep == "best" and not training.validation_rows:
        raise InputError("config.training.keep: 'best' needs config.training.validation_rows, found 0")
    if training.validation_rows == 1 or (training.validation_rows > 1 and training.validation_rows % 1):
        raise InputError(
            f"config.training.validation_rows: found {training.validation_rows}, allowed are whole numbers from 2, shares "
            "below 1, and 0"
        )
    if training.batch_size % training.accumulate:
        raise InputError(
            f"config.training.accumulate: found {training.accumulate}, which does not divide batch_size {training.batch_size}"
        )
    spec = {"name": "make_optimizer", **config.optimizer}
    optimizer = build("optimizer", {"make_optimizer": make_optimizer}, spec, num_steps=training.num_steps)

    drawn = jax.jit(lambda key: init_state(system.init(key), optimizer))

    def init() -> TrainState:
        # The default generator takes three times as long to compile for a network's many small draws.
        return drawn(jax.random.key(config.seed, impl="rbg"))

    mean = {"mean_over_devices": mean_over_devices} if config.get("parallel") == "pmap" else {}
    step = make_train_step(system.loss, optimizer, training.batch_size, training.ema_decay, training.accumulate, **mean)
    return system, init, step, training


def check(system: System, params: Params, shape: tuple[int, ...], combination: str) -> None:
    """Traces loss, score and sampler without computing, so that what they refuse is refused before anything is written."""

    def trace(params: Params, key: Array) -> tuple[Array, Array, Array]:
        x, denoise = jnp.zeros((1, *system.shape)), system.denoise(params)
        maps = system.score.maps(denoise, jnp.zeros((1, *shape)), key)
        if combination == MEMORY:
            maps = local_statistics(maps)
        loss = system.loss(params, x, jnp.zeros(1), key[None])
        return loss, maps, samplers.sample(system.sampler, denoise, x, samplers.uniform(1), key)

    jax.eval_shape(trace, params, jax.random.key(0))


def train(config: ConfigDict, dataset: Dataset, workdir: Path, progress: bool = True) -> None:
    """Trains on dataset.train and leaves config, checkpoints, logs and statistics in workdir; continues a run begun there."""
    writes = jax.process_index() == 0
    if (workdir / "config.json").exists():
        # Another config is refused, and a finished run left, before anything is compiled.
        if writes:
            save_config(workdir, config)
        if (workdir / "statistics.npz").exists() and any_in(workdir / "checkpoints"):
            Statistics.load(workdir).check_trained_on(dataset, str(workdir))
            return
    elif any_in(workdir / "checkpoints"):
        raise InputError(f"{workdir}: holds checkpoints but no config.json to tell of what; choose another workdir")
    scoring, pipeline = scoring_of(config), pipeline_of(config, dataset.train.shape[1:])
    system, init, step, settings = define(config, dataset.train.shape[1:])
    check(system, jax.eval_shape(init).params, dataset.train.shape[1:], scoring.combination)
    parallel = parallel_of(config, settings)
    chosen, held_out = _hold_out(len(dataset.train), settings.validation_rows, scoring.calibration_rows)
    learnt = Chosen(dataset.train, chosen, dataset.train.dtype) if len(held_out) else dataset.train
    transform = transforms.fit(train=learnt, **config.transform)
    calibrating = held_out if len(held_out) else evenly_spaced(len(dataset.train), scoring.calibration_rows)
    if scoring.combination == MEMORY and len(calibrating) < MIN_NORMALS:
        raise InputError(
            f"config.scoring: combination 'memory' needs {MIN_NORMALS} normals or more, found {len(calibrating)} by "
            "scoring.calibration_rows or, where set, training.validation_rows"
        )
    if writes:
        save_config(workdir, config)
        if not any_in(workdir / "checkpoints"):
            (workdir / "data.json").unlink(missing_ok=True)  # Nothing of these data was learnt yet.
        save_data(workdir, dataset)
    rows = transform.view(dataset.train)
    fitted = fit(
        step,
        init,
        Chosen(rows, chosen) if len(held_out) else rows,
        workdir,
        seed=config.seed,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        steps_per_dispatch=settings.steps_per_dispatch,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        pipeline=pipeline,
        parallel=parallel,
        validate=make_validate(
            system.held_out_loss, _middle(rows[held_out], system.shape), config.seed, settings.batch_size
        )
        if len(held_out)
        else None,
        keep=settings.keep,
        progress=dataset.name if progress and writes else None,
    )
    arguments = (scoring.combination, config.seed, scoring.batch_size)
    judged = fit_judge(system, fitted.state.ema, rows[calibrating], rows, *arguments)
    counts = {"n_train": len(learnt), "n_held_out": len(held_out)}
    facts = {**counts, "seconds_train": fitted.seconds, "step": int(fitted.state.step)}
    if writes:
        Statistics(transform, *judged, facts, dataset.name, fingerprint(dataset.train)).save(workdir)


def make_validate(loss: Loss, x_0: np.ndarray, seed: int, batch_size: int) -> Callable[[Params], Array]:
    """Parameters -> mean loss on the rows x_0 [N, ...], with the same noise each time.

    The rows are taken round and round until they fill whole batches; u_i = i phi mod 1 spreads the noise levels evenly over
    them in any order.
    """
    count = -(-len(x_0) // batch_size)
    place = np.arange(count * batch_size)
    u = np.asarray(place * (5**0.5 - 1) / 2 % 1, np.float32)
    key = jax.random.fold_in(jax.random.key(seed), len(x_0))
    mesh = data_mesh(batch_size)
    compiled = compiler.jit(on(mesh, lambda params, x, u, place: loss(params, x, u, keys_for(key, place)).mean()))

    def validate(params: Params) -> Array:
        parts = np.split(place, count)
        own_rows = (part[own(batch_size)] for part in parts)
        losses = [compiled(params, *split((x_0[i % len(x_0)], u[i], i), mesh)) for i in own_rows]
        return sum(losses, jnp.zeros(())) / count

    return validate


def _middle(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The middle of pictures x [N, H, W, C] where a datum of the network is smaller."""
    if x.shape[1:] == shape:
        return x
    top, left = (have - want for have, want in zip(x.shape[1:3], shape[:2], strict=True))
    return x[:, top // 2 : top // 2 + shape[0], left // 2 : left // 2 + shape[1]]


def _hold_out(count: int, wanted: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below `count`, parted into those to train on and `wanted`, or a share, up to `most`, to validate on."""
    wanted = min(round(wanted * count), most) if wanted < 1 else int(wanted)
    if wanted > count // 2:
        raise InputError(f"config.training.validation_rows: found {wanted}, allowed is up to half of the {count} rows")
    held_out = evenly_spaced(count, wanted)
    return np.setdiff1d(np.arange(count), held_out), held_out


def scoring_of(config: ConfigDict) -> Scoring:
    """config.scoring, checked."""
    scoring: Scoring = build("scoring", {"Scoring": Scoring}, {"name": "Scoring", **config.scoring})
    data_mesh(scoring.batch_size, key="config.scoring.batch_size")  # raises where the processes cannot share it
    if scoring.combination not in (known := [*COMBINATIONS, MEMORY]):
        raise InputError(
            f"config.scoring.combination: found {scoring.combination!r}; {nearest(scoring.combination, known)}"
        )
    if config.score.get("name") == "bound" and scoring.combination in ("typicality", "fisher"):
        raise InputError(
            f"config.scoring.combination: found {scoring.combination!r}, which takes logarithms; allowed with the score "
            "'bound', which may be negative, is 'standardised_mean'"
        )
    return scoring


def pipeline_of(config: ConfigDict, shape: tuple[int, ...]) -> Pipeline:
    """config.pipeline, checked against the shape of one datum; the defaults where the config has none."""
    pipeline: Pipeline = build("pipeline", {"Pipeline": Pipeline}, {"name": "Pipeline", **config.get("pipeline", {})})
    if (pipeline.flip or pipeline.crop) and len(shape) != 3:
        raise InputError(f"config.pipeline: flip and crop need pictures [H, W, C], found data of shape {shape}")
    if pipeline.crop > min(shape[:2]):
        raise InputError(
            f"config.pipeline.crop: found {pipeline.crop}, allowed is up to the {min(shape[:2])} pixels there are"
        )
    return pipeline


def parallel_of(config: ConfigDict, training: Training) -> Parallel:
    """How config.parallel, "jit" or "pmap", and config.mesh, {"fsdp": devices that a state is split over}, run the step."""
    axes = dict(config.get("mesh", {}))
    fsdp = axes.pop("fsdp", 1)
    if axes or type(fsdp) is not int or fsdp < 1:
        raise InputError(f"config.mesh: found {dict(config.mesh)}, allowed is {{'fsdp': 1 or more}}")
    parallel = config.get("parallel", "jit")
    if parallel == "jit":
        return by_jit(data_mesh(training.batch_size, fsdp))
    if parallel != "pmap":
        raise InputError(f"config.parallel: found {parallel!r}, allowed are 'jit' and 'pmap'")
    if fsdp > 1:
        raise InputError(f"config.mesh.fsdp: found {fsdp}, allowed with config.parallel 'pmap' is 1")
    mesh = data_mesh(training.batch_size)
    if training.batch_size // mesh.size % training.accumulate:
        raise InputError(
            f"config.training.accumulate: found {training.accumulate}, allowed with config.parallel 'pmap' are divisors of "
            f"the {training.batch_size // mesh.size} rows of each of {mesh.size} devices"
        )
    return by_pmap(mesh)
