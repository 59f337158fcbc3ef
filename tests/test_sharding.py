"""Where and in what portions arrays are computed changes no result: devices, jit and pmap, batches and padding."""

import io
import json
import logging
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from processes import with_devices

from diffad_jax import models, runs, sharding
from diffad_jax.assembly import System, assemble
from diffad_jax.data import transforms
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.digits import digits
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.evaluation import fit_judge
from diffad_jax.models.attention import attention
from diffad_jax.plan import define
from diffad_jax.ranges import check_ranges
from diffad_jax.settings import parallel_of
from diffad_jax.sharding import Parallel, by_jit, by_pmap, data_mesh, make_state, mean_over_devices, on, shard, split
from diffad_jax.statistics import Statistics
from diffad_jax.training import Batch, Params, Training, TrainState, init_state, make_dispatch, make_train_step

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


def train_by(parallel: Parallel, per_dispatch: int = 1, **options: Any) -> tuple[Params, set[tuple[int, ...]]]:
    """The parameters after 20 steps, and the shapes of the parts of its largest array that the devices hold."""
    system, state, optimizer, batches = setting()
    state = parallel.put_state(state)
    dispatch = make_dispatch(make_train_step(system.loss, optimizer, B, **options), per_dispatch, parallel.compile)
    for first in range(0, STEPS, per_dispatch):
        given = state
        batch = parallel.put_batches(jax.tree.map(lambda x, i=first: x[i : i + per_dispatch], batches))
        state, _ = dispatch(state, batch, jax.random.key(1))
    assert all(x.is_deleted() for x in jax.tree.leaves(given)), "the memory of the old state is not reused"
    parts = {part.data.shape for part in max(jax.tree.leaves(state), key=np.size).addressable_shards}
    return jax.tree.map(np.asarray, state.params), parts


def test_the_first_step_takes_over_the_memory_that_a_run_starts_with() -> None:
    """Memory that comes from NumPy, or that someone else holds, cannot be: the state would be there twice."""
    config = tiny.get_config("vectors")
    _, init, step, training = define(config, (D,))
    state, parallel = init(), parallel_of(config, training)

    def places(state: TrainState) -> set[int]:
        return {x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.params, state.ema, state.opt_state))}

    before, state = places(state), parallel.put_state(state)
    batch = parallel.put_batches(Batch(np.zeros((1, B, D), np.float32), np.arange(B)[None]))  # type: ignore[arg-type]
    after, _ = make_dispatch(step, 1, parallel.compile)(state, batch, jax.random.key(1))
    assert places(after) == before


def train_each_way() -> dict[str, tuple[Params, set[tuple[int, ...]]]]:
    assert jax.device_count() == 8
    sharding.MIN_SPLIT = 2**7  # of which this network has some arrays
    return {
        # As many devices as divide the number.
        "jit, 1 device": train_by(by_jit(data_mesh(1))),
        "jit, 8 devices": train_by(by_jit(data_mesh(8))),
        "jit, 8 devices, 4 steps a dispatch, 2 passes a step": train_by(
            by_jit(data_mesh(8)), per_dispatch=4, accumulate=2
        ),
        "jit, 2 x 4 devices": train_by(by_jit(data_mesh(8, fsdp=4))),
        "pmap, 1 device": train_by(by_pmap(data_mesh(1)), mean_over_devices=mean_over_devices),
        "pmap, 8 devices": train_by(by_pmap(data_mesh(8)), mean_over_devices=mean_over_devices),
        "pmap, 8 devices, 4 steps a dispatch, 2 passes a step": train_by(
            by_pmap(data_mesh(8)), per_dispatch=4, accumulate=2, mean_over_devices=mean_over_devices
        ),
    }


@pytest.fixture(scope="module")
def each_way() -> dict[str, tuple[Params, set[tuple[int, ...]]]]:
    return with_devices(8, train_each_way)


@pytest.mark.parametrize(
    "way",
    [
        "jit, 8 devices",
        "jit, 8 devices, 4 steps a dispatch, 2 passes a step",
        "jit, 2 x 4 devices",
        "pmap, 1 device",
        "pmap, 8 devices",
        "pmap, 8 devices, 4 steps a dispatch, 2 passes a step",
    ],
)
def test_jit_and_pmap_on_many_devices_train_what_one_device_trains(each_way: dict[str, Any], way: str) -> None:
    (one, whole), (many, parts), start = each_way["jit, 1 device"], each_way[way], setting()[1].params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), many, one)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, start)
    assert min(jax.tree.leaves(moved)) > 1e-2
    assert {np.prod(part) for part in parts} == {np.prod(*whole) // (4 if "x 4" in way else 1)}


def made_on_many() -> tuple[list[tuple[Any, Any]], int, int]:
    """Each array with that of one device, the bytes that went over the host, and those of the parameters."""
    sharding.MIN_SPLIT = 2**7
    _, init, *_ = define(tiny.get_config("vectors"), (D,))
    parallel, sent = by_jit(data_mesh(8, fsdp=4)), []
    get = jax.device_get

    def counted(tree: Any) -> Any:
        sent.append(sum(x.nbytes for x in jax.tree.leaves(tree)))
        return get(tree)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_get", counted)
        state = make_state(init, parallel)
    one = init()
    jax.tree.map(lambda x, where: (x.sharding == where) or pytest.fail("out of place"), state, parallel.shardings(one))
    pairs = list(zip(map(np.asarray, jax.tree.leaves(state)), map(np.asarray, jax.tree.leaves(one)), strict=True))
    return pairs, sum(sent), sum(x.nbytes for x in jax.tree.leaves(one.params))


def test_on_many_devices_the_state_is_that_of_one_and_its_parameters_alone_go_over_the_host() -> None:
    pairs, sent, parameters = with_devices(8, made_on_many)
    for many, one in pairs:
        np.testing.assert_array_equal(many, one)
    assert sent == parameters


def placements() -> list[Any]:
    """By batch size and fsdp: the mesh, and the parts of a batch and of large and small arrays that a device holds."""
    result = []
    shapes = ((512, 128), (128, 512), (3, 512, 512), (512, 127), (513, 514, 3), (512,))
    for batch_size, fsdp in ((16, 1), (6, 1), (5, 1), (11, 1), (16, 4), (18, 3), (8, 8)):
        mesh = data_mesh(batch_size, fsdp)
        batch = split(np.zeros((3, batch_size, 2)), mesh, axis=1)
        arrays = [batch, *shard([np.zeros(shape) for shape in shapes], mesh)]
        assert all(len(x.addressable_shards) == mesh.size for x in arrays)
        result.append((tuple(mesh.shape.values()), *(x.addressable_shards[0].data.shape for x in arrays)))
    return result


def test_batches_are_split_over_all_devices_and_large_arrays_over_fsdp() -> None:
    whole = ((512, 128), (128, 512), (3, 512, 512), (512, 127), (513, 514, 3), (512,))
    assert with_devices(8, placements) == [
        ((8, 1), (3, 2, 2), *whole),
        ((6, 1), (3, 1, 2), *whole),
        ((5, 1), (3, 1, 2), *whole),
        ((1, 1), (3, 11, 2), *whole),
        ((2, 4), (3, 2, 2), (128, 128), (128, 128), (3, 128, 512), *whole[3:]),
        ((2, 3), (3, 3, 2), *whole[:2], (1, 512, 512), (512, 127), (171, 514, 3), (512,)),
        ((1, 8), (3, 1, 2), (64, 128), (128, 64), (3, 64, 512), *whole[3:]),
    ]


@pytest.mark.parametrize(
    ("parallel", "mesh", "accumulate", "words"),
    [
        ("xmap", {}, 1, "config.parallel: found 'xmap'; did you mean 'pmap'? allowed are jit, pmap"),
        ("jit", {"fsdp": 0}, 1, "config.mesh.fsdp: found 0, allowed are numbers from 1"),
        ("jit", {"model": 2}, 1, "config.mesh.model: MeshSize takes no such argument; allowed are fsdp"),
        ("jit", {"fsdp": 1024}, 1, "config.mesh.fsdp: found 1024, allowed with 16 rows are divisors of 1"),
        ("pmap", {"fsdp": 2}, 1, "config.mesh.fsdp: found 2, allowed with config.parallel 'pmap' is 1"),
        ("pmap", {}, 32, "config.training.accumulate: found 32"),
    ],
)
def test_what_does_not_fit_is_refused(parallel: str, mesh: dict[str, int], accumulate: int, words: str) -> None:
    config = ConfigDict({"parallel": parallel, "mesh": mesh})
    with pytest.raises(InputError, match=re.escape(words)):
        check_ranges(config)
        parallel_of(config, Training(num_steps=1, batch_size=16, accumulate=accumulate))


def warnings_on_six_devices(workdir: Path) -> str:
    told = io.StringIO()
    logging.getLogger("absl").addHandler(logging.StreamHandler(told))
    config, rows = tiny.get_config("vectors"), np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    config.mesh = {"fsdp": 3}
    config.training.update({"num_steps": 1, "batch_size": 9})
    config.scoring.batch_size = 10
    runs.train(config, Dataset("rows", rows, rows[:0], np.zeros(0, int)), workdir, progress=False)
    return told.getvalue()


def train_on_three_of_four_devices(workdir: Path) -> float:
    config, rows = tiny.get_config("vectors"), np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    config.mesh = {"fsdp": 3}
    config.training.update({"num_steps": 2, "batch_size": 24, "validation_rows": 20})
    runs.train(config, Dataset("rows", rows, rows[:0], np.zeros(0, int)), workdir, progress=False)
    return float(json.loads((workdir / "log.jsonl").read_text().splitlines()[-1])["validation_loss"])


def test_held_out_rows_are_judged_on_the_devices_of_training(tmp_path: Path) -> None:
    assert with_devices(4, train_on_three_of_four_devices, tmp_path) > 0


def test_devices_that_idle_and_a_mesh_that_splits_nothing_are_told(tmp_path: Path) -> None:
    told = with_devices(6, warnings_on_six_devices, tmp_path)
    assert "config.training.batch_size: 9 rows are split over 3 of 6 devices, multiples of 6 over all" in told
    assert "config.scoring.batch_size: 10 rows are split over 5 of 6 devices, multiples of 6 over all" in told
    assert "config.mesh.fsdp: 3 splits nothing: no array of 65536 numbers" in told


# --- scoring ---------------------------------------------------------------------------------------------------------

ROWS = digits(anomalous_class=0).test[-150:]


@cache
def detector() -> Trained:
    """A U-Net with random weights, which would show the slightest influence of one row on another, and a bank of normals."""
    config, train = judged_by_fisher(64), digits(anomalous_class=0).train
    system, transform = assemble(config, train.shape[1:]), transforms.fit(train=train, **config.transform)
    leaves, structure = jax.tree.flatten(jax.jit(system.init)(jax.random.key(0)))
    draw = np.random.default_rng(0).normal
    params = structure.unflatten([np.asarray(x + 0.1 * draw(size=x.shape), np.float32) for x in leaves])
    rows = transform.apply(train)
    judged = fit_judge(system, params, rows, np.arange(64), "fisher", config.seed, 64)
    return Trained(config, system, params, Statistics(transform, *judged, {}, "rows", "", np.zeros(0)))


def judged_by_fisher(batch_size: int) -> ConfigDict:
    config = tiny.get_config()
    config.scoring.update({"combination": "fisher", "batch_size": batch_size})
    return config


def scores(rows: np.ndarray, batch_size: int) -> np.ndarray:
    return replace(detector(), config=judged_by_fisher(batch_size)).score(rows)


def device_count_and_scores(counts: list[int]) -> tuple[int, list[np.ndarray]]:
    return data_mesh(64).size, [scores(ROWS[:count], 64) for count in counts]


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
    counts = [1, 7, 64, 65, 150]
    devices, on_eight = with_devices(8, device_count_and_scores, counts)
    assert devices == 8
    for count, found in zip(counts, on_eight, strict=True):
        assert_same(found, together[:count])


def test_sets_that_share_rows_are_scored_as_if_each_stood_alone(together: np.ndarray) -> None:
    sets = ROWS[:90], ROWS[60:][::-1], ROWS[:1]
    found = detector().score_each(sets)
    for one, errors in zip(sets, found):
        calibrated = np.concatenate([reading.errors for reading in detector().read(one)])
        assert_same(errors[:, 1], calibrated)
    first, second, third = (pairs[:, 0] for pairs in found)
    assert_same(first, together[:90])
    assert_same(second, together[60:][::-1])
    assert_same(third, together[:1])
    with pytest.raises(InputError, match="transform: data is"):
        detector().score_each([ROWS[:4], ROWS[:4, :, None]])
    with pytest.raises(InputError, match="data: found none"):
        detector().score(ROWS[:0])


def splash_for_tpu() -> list[bool]:
    """Whether the program for a TPU has splash attention: on a mesh of 8, with rows that do not divide, and under pmap."""

    def attend(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: attention(x, x, x).sum())(x)

    mesh = data_mesh(8)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jnp.ones((8, 128, 2, 64))
    programs = [
        jax.jit(on(mesh, attend), in_shardings=rows).trace(x),
        jax.jit(on(mesh, attend)).trace(x[:3]),
        jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=rows.spec, out_specs=rows.spec, check_vma=False)).trace(x),
    ]
    return ["tpu_custom_call" in p.lower(lowering_platforms=("tpu",)).as_text() for p in programs]


def test_splash_attention_is_split_over_the_chips_of_a_mesh() -> None:
    assert with_devices(8, splash_for_tpu) == [True, False, True]


def by_rows_on_a_mesh() -> tuple[Array, Array]:
    """Each device's rows by a kernel that stands in for the TPU's, and all rows at once."""
    models.attention.splash = jax.nn.dot_product_attention
    q, k, v = (np.random.default_rng(i).normal(size=(8, 6, 2, 4)).astype(np.float32) for i in range(3))
    mesh = data_mesh(8)
    by_rows = jax.jit(on(mesh, models.attention._splash_by_rows))(*(split(x, mesh) for x in (q, k, v)))
    assert {part.data.shape for part in by_rows.addressable_shards} == {(1, 6, 2, 4)}
    return jax.tree.map(np.asarray, (by_rows, models.attention.xla(q, k, v)))


def test_attention_by_rows_on_a_mesh_is_that_of_all() -> None:
    np.testing.assert_allclose(*with_devices(8, by_rows_on_a_mesh), rtol=1e-5, atol=1e-6)


def refusal_by_several_processes() -> str:
    jax.process_count = lambda: 2
    try:
        data_mesh(24, fsdp=3)
    except InputError as error:
        return str(error)
    return ""


def test_several_processes_leave_no_device_out() -> None:
    assert "found 3, allowed with 24 rows are divisors of 8" in with_devices(8, refusal_by_several_processes)


def refusal_by_pmap() -> str:
    try:
        parallel_of(ConfigDict({"parallel": "pmap"}), Training(num_steps=1, batch_size=16, accumulate=4))
    except InputError as error:
        return str(error)
    return ""


def test_passes_divide_the_rows_of_one_device_by_pmap() -> None:
    assert "allowed with config.parallel 'pmap' are divisors of the 2 rows" in with_devices(8, refusal_by_pmap)
