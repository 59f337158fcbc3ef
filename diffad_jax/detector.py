"""A trained detector, read from the work directory of its run: scores, heat maps, samples, explanations."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter

from diffad_jax import compiler
from diffad_jax.assembly import System
from diffad_jax.checkpoint import Checkpoints, steps_in
from diffad_jax.data.dataset import Dataset, Rows
from diffad_jax.distributed import together
from diffad_jax.errors import InputError, check_choice
from diffad_jax.evaluation import Reading, batch_reader, in_batches, joined
from diffad_jax.noise import fold_in, gaussian, key_of, keys_for
from diffad_jax.patches import over_patches
from diffad_jax.plan import define
from diffad_jax.process import diffuse
from diffad_jax.reasons import Reasons, reasons
from diffad_jax.samplers import GRIDS, sample
from diffad_jax.scores import reconstruct
from diffad_jax.settings import Scoring, scoring_of
from diffad_jax.statistics import Statistics
from diffad_jax.training import Params
from diffad_jax.workdir import load_config

EXPLAINED = 12  # pictures at once: as many as a report shows


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run, ready to score raw data of the shape that it was trained on. What it compiles it compiles once.

    batch_size: data scored at once, in place of config.scoring.batch_size; scores are the same, to rounding.
    """

    config: ConfigDict
    system: System
    params: Params
    statistics: Statistics
    batch_size: int | None = None

    @cached_property
    def scoring(self) -> Scoring:
        """config.scoring, with the batch size that was asked for."""
        own = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return scoring_of(ConfigDict({"scoring": {**self.config.scoring, **own}}))

    def trained_on(self, datasets: Sequence[Dataset]) -> Dataset:
        """The one of these data sets whose normals the run has learnt, by its name.

        Raises InputError where it is missing, or has other training rows now.
        """
        for dataset in datasets:
            if dataset.name == self.statistics.dataset:
                self.statistics.check_trained_on(dataset, "config.data: the run")
                return dataset
        raise InputError(
            f"config.data: the run was trained on {self.statistics.dataset}; found {', '.join(d.name for d in datasets)}"
        )

    @property
    def has_maps(self) -> bool:
        """Whether the score comes as a map of the picture's pixels, rather than as one number."""
        x_0, denoise = jnp.zeros((1, *self.statistics.transform.shape)), self.system.denoise(self.params)
        return jax.eval_shape(partial(self.system.score.maps, denoise), x_0, jax.random.key(0)).ndim == 4

    def score(self, raw: Rows) -> np.ndarray:
        """Anomaly scores [N] of raw data [N, ...]; higher = more anomalous, above statistics.threshold called so.

        Their unit is that of config.scoring.combination: "standardised_mean" counts standard deviations of normals' errors,
        about 0 for a normal; "typicality" a squared Mahalanobis distance, about 1; "fisher" nats, from 0 on; "nearest"
        standard deviations of normals' log distances, about 0; "memory" multiples of normals' distances less 1, about 0.
        """
        return joined(self._scores, self._view(raw), self.scoring.batch_size)

    def reasons(self, raw: np.ndarray) -> Reasons:
        """What `score` would tell of rows [N, D] were one column alone what it is in normals, see `reasons`: both [N, D].

        Raises InputError where the run has learnt pictures.
        """
        self.check_columns()
        return reasons(self.score, raw, self.statistics.usual)

    def check_columns(self) -> None:
        """Raises InputError where the run has learnt pictures, which have no columns to be the reasons of a score."""
        if len(shape := self.statistics.transform.shape) != 1:
            raise InputError(f"reasons: the run has learnt pictures {list(shape)}, allowed are runs of rows")

    def read(self, raw: Rows) -> Iterator[Reading]:
        """Scores, smoothed heat maps and errors of raw pictures [N, H, W, C], batch after batch, in bounded memory.

        Heat maps are in the unit of "memory" where that is the combination, else in that of "standardised_mean" (see
        `score`). Where the score has no map, the maps are [B].
        """
        settings = self.scoring
        for reading in in_batches(self._readings, self._view(raw), settings.batch_size):
            if settings.smoothing and reading.maps.ndim == 3:
                reading = reading._replace(maps=gaussian_filter(reading.maps, settings.smoothing, axes=(1, 2)))
            yield reading

    def _view(self, raw: Rows | Array) -> Rows:
        return self.statistics.transform.view(np.asarray(raw) if isinstance(raw, Array) else raw)

    @cached_property
    def _scores(self) -> Callable[[np.ndarray], Array]:
        return self._reader(lambda reading: reading.scores)

    @cached_property
    def _pairs(self) -> Callable[[np.ndarray], Array]:
        return self._reader(lambda reading: jnp.stack([reading.scores, reading.errors], axis=1))

    @cached_property
    def _readings(self) -> Callable[[np.ndarray], Reading]:
        return self._reader(lambda reading: reading)

    def _reader(self, part: Callable[[Reading], Any]) -> Callable[[np.ndarray], Any]:
        settings, judge = self.scoring, self.statistics.judge
        how = settings.combination, self.config.seed, settings.batch_size
        return batch_reader(self.system, self.params, judge, *how, part)

    def score_each(self, raw_sets: Sequence[Rows]) -> list[np.ndarray]:
        """Scores and errors of several sets, see `Reading`, each [N, 2].

        A row that stands in more than one is scored once: its score depends on it alone.
        """
        alike = len({raw.shape[1:] for raw in raw_sets}) == 1 and all(len(raw) for raw in raw_sets)
        if len(raw_sets) == 1 or not alike or not all(isinstance(raw, np.ndarray) for raw in raw_sets):
            return [joined(self._pairs, self._view(raw), self.scoring.batch_size) for raw in raw_sets]
        rows = np.concatenate([np.ascontiguousarray(raw).reshape(len(raw), -1) for raw in raw_sets])
        as_bytes = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
        _, first, place = np.unique(as_bytes, return_index=True, return_inverse=True)
        (pairs,) = self.score_each([rows[first].reshape(-1, *raw_sets[0].shape[1:])])
        return np.split(pairs[place], np.cumsum([len(raw) for raw in raw_sets])[:-1])

    def sample(self, count: int, num_steps: int = 50, seed: int = 0, grid: str = "uniform") -> np.ndarray:
        """Draws `count` new normals [count, ...] from the model, with config.sampler over num_steps of a `samplers.GRIDS`.

        Raw, as `score` takes data; in model range where `Transform.invert` cannot bring them back ("contrast", and patches of
        pictures whose pixels have statistics of their own). As large as the patches where the model has learnt these.
        Raises InputError on counts below 1 and on another grid.
        """
        check_choice("grid", grid, GRIDS)
        for name, value in (("count", count), ("num_steps", num_steps)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name}: found {value!r}, allowed are whole numbers from 1")
        keys = keys_for(key_of(seed), jnp.arange(count))
        return self.statistics.transform.invert(np.asarray(self._drawn(self.params, keys, num_steps, grid)))

    @cached_property
    def _drawn(self) -> Callable[[Params, Array, int, str], Array]:
        """(params, keys [K], num_steps, grid) -> new normals [K, ...]."""
        system = self.system

        def draw(params: Params, keys: Array, num_steps: int, grid: str) -> Array:
            x = gaussian(keys, jnp.zeros((len(keys), *system.shape)))
            times = GRIDS[grid](system.process, num_steps, 1.0)
            return sample(system.sampler, system.denoise(params), x, times, fold_in(keys, 1))

        return compiler.jit(draw, static_argnums=(2, 3))

    def explain(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For pictures [K, H, W, C]: (x_0, x_t, reconstruction, heat map [K, H, W]), the first three in model range.

        The heat map is the squared error of the reconstruction where the score has no map. A model of patches reconstructs
        them all under the same noise; x_t is the whole picture under another.
        """
        x_0 = self.statistics.transform.apply(raw)
        # In batches of one size, for which alone it is compiled.
        filled = np.resize(x_0, (-(-len(x_0) // EXPLAINED) * EXPLAINED, *x_0.shape[1:]))
        parts = [self._reconstructed(self.params, filled[i : i + EXPLAINED]) for i in range(0, len(filled), EXPLAINED)]
        x_t, x = (np.concatenate(arrays)[: len(x_0)] for arrays in zip(*parts))
        heat = np.concatenate([reading.maps for reading in self._of_few.read(raw)])
        return x_0, x_t, x, heat if heat.ndim == 3 else ((x - x_0) ** 2).mean(axis=-1)

    @cached_property
    def _of_few(self) -> "Trained":
        """The same run, which reads few pictures at once."""
        return replace(self, batch_size=math.lcm(EXPLAINED, jax.device_count()))

    @cached_property
    def _reconstructed(self) -> Callable[[Params, np.ndarray], tuple[Array, Array]]:
        """(params, x_0 [K, H, W, C]) -> x_t and the reconstruction, both like x_0."""
        settings, key = self.scoring, key_of(self.config.seed)
        system, t = self.system, jnp.float32(settings.picture_time)

        def of(params: Params, x_0: Array) -> tuple[Array, Array]:
            denoise = system.denoise(params)

            def both(x: Array) -> tuple[Array, Array]:
                return reconstruct(system.process, system.sampler, denoise, x, t, settings.picture_steps, key)

            if system.shape == x_0.shape[1:]:
                return both(x_0)
            joined = over_patches(lambda x: jnp.moveaxis(both(x)[1], -1, 0), x_0, size=system.shape[0])
            return diffuse(system.process, x_0, t, gaussian(key, x_0)), jnp.moveaxis(joined, 0, -1)

        return compiler.jit(of)


def load(workdir: str | Path, batch_size: int | None = None) -> Trained:
    """Reads a finished run from its work directory alone: config, statistics and the averaged parameters.

    The parameters are those of the last checkpoint, or of the best where config.training.keep asks for it.
    batch_size: data scored at once, by default as config.scoring says. Raises InputError where that checkpoint cannot be
    read: the statistics are of no other.
    """
    workdir = Path(workdir)
    with together():
        config, statistics = load_config(workdir), Statistics.load(workdir)
        system, init, _, training = define(config, statistics.transform.shape)
    # Nothing is drawn: zeros that no one touches take neither memory nor time.
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(init))
    restored = None
    if steps_in(workdir / "checkpoints"):  # Orbax would make a directory that is missing.
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            restored = checkpoints.restore(like, best=training.keep == "best")
    if restored is None:
        raise InputError(f"{workdir / 'checkpoints'}: holds no checkpoint; repeat the experiments.train command")
    if int(restored.step) != (judged := int(statistics.facts["step"])):
        raise InputError(
            f"{workdir}: the statistics are of step {judged}, and the newest checkpoint that can be read is of step "
            f"{int(restored.step)}; delete statistics.npz and repeat the experiments.train command"
        )
    params = restored.ema if jax.device_count() > 1 else jax.device_put(restored.ema)
    return Trained(config, system, params, statistics, batch_size)
