"""Where and in what portions arrays are computed changes no result: devices, jit and pmap, batches and padding."""

from functools import cache

import jax
import numpy as np
import optax
import pytest
import tiny
from processes import with_devices

from diffad_jax.assembly import System, assemble
from diffad_jax.data import digits, transforms
from diffad_jax.detector import Trained
from diffad_jax.evaluation import fit_calibration, make_levels
from diffad_jax.sharding import data_mesh, replicate, split
from diffad_jax.training import Batch, Params, TrainState, init_state, make_dispatch, make_train_step
from diffad_jax.workdir import Statistics

B, D, STEPS = 16, 6, 20

# --- training --------------------------------------------------------------------------------------------------------


@cache
def setting() -> tuple[System, TrainState, optax.GradientTransformation, Batch]:
    """A small MLP, its state before the first step, and 20 batches, leaves [STEPS, B, ...]."""
    system = assemble(tiny.get_config("vectors"), (D,))
    optimizer = optax.adam(1e-2)
    x_0 = np.random.default_rng(0).normal(size=(STEPS, B, D)).astype(np.float32) @ np.diag([3, 2, 1, 1, 0.3, 0.1])
    batches = Batch(x_0.astype(np.float32), np.tile(np.arange(B), (STEPS, 1)))
    state = init_state(jax.jit(system.init)(jax.random.key(0)), optimizer)
    # In the host's memory, since training overwrites a state on the device.
    return system, jax.tree.map(np.array, state), optimizer, batches


def train_by_jit(device_count: int, per_dispatch: int = 1, accumulate: int = 1) -> Params:
    system, state, optimizer, batches = setting()
    mesh = data_mesh(device_count)
    state, key = replicate((state, jax.random.key(1)), mesh)
    dispatch = make_dispatch(make_train_step(system.loss, optimizer, B, accumulate=accumulate), per_dispatch)
    for first in range(0, STEPS, per_dispatch):
        batch = split(jax.tree.map(lambda x, i=first: x[i : i + per_dispatch], batches), mesh, axis=1)
        assert len(batch.x_0.sharding.device_set) == device_count
        state, _ = dispatch(state, batch, key)
    return jax.tree.map(np.asarray, state.params)


def train_by_pmap() -> Params:
    system, state, optimizer, batches = setting()
    step = make_train_step(system.loss, optimizer, B, mean_over_devices=lambda x: jax.lax.pmean(x, "data"))
    parallel = jax.pmap(step, axis_name="data", in_axes=(None, 0, None), out_axes=None)
    for i in range(STEPS):
        batch = jax.tree.map(lambda x: x[i].reshape(jax.device_count(), -1, *x.shape[2:]), batches)  # noqa: B023
        state, _ = parallel(state, batch, jax.random.key(1))
    return jax.tree.map(np.asarray, state.params)


def train_each_way() -> dict[str, Params]:
    assert jax.device_count() == 8
    return {
        "jit, 1 device": train_by_jit(1),
        "jit, 8 devices": train_by_jit(8),
        "jit, 8 devices, 4 steps a dispatch, 2 passes a step": train_by_jit(8, per_dispatch=4, accumulate=2),
        "pmap, 8 devices": train_by_pmap(),
    }


@pytest.fixture(scope="module")
def each_way() -> dict[str, Params]:
    return with_devices(8, train_each_way)


@pytest.mark.parametrize(
    "way", ["jit, 8 devices", "jit, 8 devices, 4 steps a dispatch, 2 passes a step", "pmap, 8 devices"]
)
def test_jit_and_pmap_on_many_devices_train_what_one_device_trains(each_way: dict[str, Params], way: str) -> None:
    one, start = each_way["jit, 1 device"], setting()[1].params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), each_way[way], one)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, start)
    assert min(jax.tree.leaves(moved)) > 1e-2


def placements() -> list[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """(batch size, devices, shape of a device's part of a batch, of the parameters)."""
    result = []
    for batch_size in (16, 6, 5):
        mesh = data_mesh(batch_size)
        batch, params = split(np.zeros((3, batch_size, 2)), mesh, axis=1), replicate(np.zeros((7, 2)), mesh)
        parts = [x.addressable_shards[0].data.shape for x in (batch, params)]
        assert len(params.addressable_shards) == mesh.size
        result.append((batch_size, mesh.size, *parts))
    return result


def test_a_batch_is_split_over_as_many_devices_as_divide_it() -> None:
    expected = [(16, 8, (3, 2, 2), (7, 2)), (6, 2, (3, 3, 2), (7, 2)), (5, 1, (3, 5, 2), (7, 2))]
    assert with_devices(8, placements) == expected


# --- scoring ---------------------------------------------------------------------------------------------------------

ROWS = digits(anomalous_class=0).test[-150:]


@cache
def detector() -> Trained:
    """A U-Net with random weights, which would show the slightest influence of one row on another."""
    config, train = tiny.get_config(), digits(anomalous_class=0).train
    system, transform = assemble(config, train.shape[1:]), transforms.fit(train=train, **config.transform)
    leaves, structure = jax.tree.flatten(jax.jit(system.init)(jax.random.key(0)))
    draw = np.random.default_rng(0).normal
    params = structure.unflatten([np.asarray(x + 0.1 * draw(size=x.shape), np.float32) for x in leaves])
    levels = make_levels(system, params, config.seed, 64)(transform.apply(train[:64]))
    return Trained(config, system, params, Statistics(transform, *fit_calibration(levels), {}))


def scores(rows: np.ndarray, batch_size: int) -> np.ndarray:
    config = tiny.get_config()
    config.scoring.batch_size = batch_size
    return detector()._replace(config=config).score(rows)


def device_count_and_scores(rows: np.ndarray, batch_size: int) -> tuple[int, np.ndarray]:
    return data_mesh(batch_size).size, scores(rows, batch_size)


@pytest.fixture(scope="module")
def together() -> np.ndarray:
    """The scores of all rows, in batches of 64 of which the last is padded."""
    result = scores(ROWS, 64)
    assert result.shape == (150,) and result.std() > 0.1
    return result


def assert_same(some: np.ndarray, others: np.ndarray) -> None:
    np.testing.assert_allclose(some, others, rtol=1e-5, atol=1e-5)


def test_a_row_alone_scores_as_among_others(together: np.ndarray) -> None:
    for i in (0, 77, 149):
        assert_same(scores(ROWS[i : i + 1], 64), together[i : i + 1])


def test_the_order_of_the_rows_does_not_matter(together: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(ROWS))
    assert_same(scores(ROWS[order], 64), together[order])


@pytest.mark.parametrize("batch_size", [7, 256])
def test_the_batch_size_does_not_matter(together: np.ndarray, batch_size: int) -> None:
    assert_same(scores(ROWS, batch_size), together)


def test_the_number_of_devices_does_not_matter(together: np.ndarray) -> None:
    count, on_two = with_devices(2, device_count_and_scores, ROWS, 64)
    assert count == 2
    assert_same(on_two, together)


def test_sets_that_share_rows_are_scored_as_if_each_stood_alone(together: np.ndarray) -> None:
    first, second, third = detector().score_each([ROWS[:90], ROWS[60:][::-1], ROWS[:1]])
    assert_same(first, together[:90])
    assert_same(second, together[60:][::-1])
    assert_same(third, together[:1])
