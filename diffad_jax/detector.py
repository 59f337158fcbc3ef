"""A trained detector, read from the work directory of its run: scores, samples, explanations."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from diffad_jax.assembly import System
from diffad_jax.checkpoint import Checkpoints
from diffad_jax.errors import InputError
from diffad_jax.evaluation import make_levels
from diffad_jax.noise import fold_in, gaussian, keys_for
from diffad_jax.runs import scoring_of, start
from diffad_jax.samplers import sample, uniform
from diffad_jax.scores import combine, l2, reconstruct
from diffad_jax.training import Params
from diffad_jax.workdir import Statistics, load_config


class Trained(NamedTuple):
    """A finished run, ready to score raw data of the shape that it was trained on."""

    config: ConfigDict
    system: System
    params: Params
    statistics: Statistics

    def score(self, raw: np.ndarray) -> np.ndarray:
        """Anomaly scores [N] of raw data [N, ...]; higher = more anomalous, above statistics.threshold called so."""
        x = self.statistics.transform.apply(raw)
        levels = make_levels(self.system, self.params, self.config.seed, scoring_of(self.config).batch_size)(x)
        return np.asarray(combine(self.statistics.calibration, jnp.asarray(levels)))

    def score_each(self, raw_sets: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The scores of several sets. A row that stands in more than one is scored once: its score depends on it alone."""
        rows = np.concatenate([np.ascontiguousarray(raw).reshape(len(raw), -1) for raw in raw_sets])
        as_bytes = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
        _, first, place = np.unique(as_bytes, return_index=True, return_inverse=True)
        scores = self.score(rows[first].reshape(-1, *raw_sets[0].shape[1:]))[place]
        return np.split(scores, np.cumsum([len(raw) for raw in raw_sets])[:-1])

    def sample(self, count: int, num_steps: int = 50, seed: int = 0) -> np.ndarray:
        """Draws `count` new normals from the model, in model range, with config.sampler over num_steps even steps."""
        key = jax.random.key(seed)
        keys = keys_for(key, jnp.arange(count))

        @jax.jit
        def draw(params: Params) -> Array:
            x = gaussian(keys, jnp.zeros((count, *self.statistics.transform.shape)))
            return sample(self.system.sampler, self.system.denoise(params), x, uniform(num_steps), fold_in(keys, 1))

        return np.asarray(draw(self.params))

    def explain(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For pictures [K, H, W, C]: (x_0, x_t, reconstruction, error map [K, H, W]), the first three in model range.

        The error map is the combined score map, or the squared error of the reconstruction where the score has no map.
        """
        settings, key = scoring_of(self.config), jax.random.key(self.config.seed)
        system, calibration = self.system, self.statistics.calibration

        @jax.jit
        def explain(params: Params, x_0: Array) -> tuple[Array, Array, Array]:
            denoise, t = system.denoise(params), jnp.asarray(settings.picture_time, x_0.dtype)
            x_t, x = reconstruct(system.process, system.sampler, denoise, x_0, t, settings.picture_steps, key)
            maps = system.score.maps(denoise, x_0, key)
            return x_t, x, combine(calibration, maps) if maps.ndim > 2 else l2(x_0, x)

        x_0 = self.statistics.transform.apply(raw)
        x_t, x, error = explain(self.params, jnp.asarray(x_0))
        return x_0, np.asarray(x_t), np.asarray(x), np.asarray(error)


def load(workdir: Path) -> Trained:
    """Reads a finished run from its work directory alone: config, statistics and the averaged parameters."""
    config, statistics = load_config(workdir), Statistics.load(workdir)
    system, state, _, _ = start(config, statistics.transform.shape)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state)
    if restored is None:
        raise InputError(f"{workdir / 'checkpoints'}: holds no checkpoint; repeat the experiments.train command")
    return Trained(config, system, restored.ema, statistics)
