"""The backbones against stored outputs of the reference implementations, and the contract they share."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffad_jax import assembly
from diffad_jax.errors import InputError
from diffad_jax.models import MLP, DiT, UNet
from diffad_jax.models.published import dit_params, unet_params
from experiments.flops import flops

REFERENCE = Path(__file__).parent / "data" / "reference"
UNET_TINY = UNet(32, (1, 2), num_blocks=1, attention_factors=(2,), head_channels=16, learned_variance=True)
UNET_PLAIN = UNet(
    32, (1, 1, 2), num_blocks=2, attention_factors=(2, 4), num_heads=2, scale_shift=False, resample="conv"
)
DIT_TINY = DiT(patch_size=2, width=64, depth=3, num_heads=4, learned_variance=True)
PICTURE, VECTOR = (3, 8, 8, 2), (3, 10)
CASES = {
    "unet": (UNet(16, (1,)), PICTURE),
    "unet_variance": (UNet(48, (1,), scale_shift=False, resample="conv", learned_variance=True), PICTURE),
    "dit": (DiT(patch_size=4, width=32, depth=2, num_heads=4), PICTURE),
    "dit_variance": (DiT(patch_size=2, width=32, depth=2, num_heads=4, learned_variance=True), PICTURE),
    "dit_vector": (DiT(patch_size=4, width=32, depth=2, num_heads=4, learned_variance=True), VECTOR),
    "mlp": (MLP(width=32, depth=2, dropout=0.5), VECTOR),
    "mlp_variance": (MLP(width=32, depth=2, learned_variance=True), VECTOR),
}


# These tests spend their time in the compiler, not in the networks.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(model: Any, *shape: int) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))["params"]


def stored(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], jax.Array]:
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    weights = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    return arrays, weights, jnp.asarray((arrays["t_index"] + 1) / 1000, jnp.float32)


def random_params(model: Any, *shape: int) -> Any:
    """Parameters off their initial values, so that the zero layers hide nothing."""
    generator = np.random.default_rng(1)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = 0.05 + 0.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        return (scale * generator.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes(model, *shape))


@pytest.mark.parametrize(("name", "model"), [("unet_tiny", UNET_TINY), ("unet_tiny_plain", UNET_PLAIN)])
def test_unet_agrees_with_the_reference(name: str, model: UNet) -> None:
    arrays, weights, t = stored(name)
    params = unet_params(weights, shapes(model, *arrays["input"].shape))
    output = compiled(model.apply)({"params": params}, arrays["input"], t)
    np.testing.assert_allclose(output, arrays["output"], atol=1e-4)


def test_dit_agrees_with_the_reference_at_each_label() -> None:
    arrays, weights, t = stored("dit_tiny")
    template, apply = shapes(DIT_TINY, *arrays["input"].shape), compiled(DIT_TINY.apply)
    assert arrays["label"][0] == 10  # the null class, the default
    for row, keywords in enumerate(({}, {"label": int(arrays["label"][1])})):
        output = apply({"params": dit_params(weights, template, **keywords)}, arrays["input"], t)
        np.testing.assert_allclose(output[row], arrays["output"][row], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("out.2.bias"), "missing out.2.bias"),
        (lambda w: w.update(extra=np.zeros(1)), "left over extra"),
        (lambda w: w.update({"out.2.bias": np.zeros(7)}), "out.2.bias gives shape"),
    ],
)
def test_published_unet_weights_must_fit(change: Any, message: str) -> None:
    arrays, weights, _ = stored("unet_tiny")
    change(weights)
    with pytest.raises(InputError, match=message):
        unet_params(weights, shapes(UNET_TINY, *arrays["input"].shape))


def test_published_dit_weights_must_fit() -> None:
    arrays, weights, _ = stored("dit_tiny")
    template = shapes(DIT_TINY, *arrays["input"].shape)
    with pytest.raises(InputError, match="label: found 11"):
        dit_params(weights, template, label=11)
    with pytest.raises(InputError, match="pos_embed"):
        dit_params({**weights, "pos_embed": np.zeros((1, 64, 64))}, template)
    with pytest.raises(InputError, match="missing y_embedder"):
        dit_params({k: v for k, v in weights.items() if not k.startswith("y_embedder")}, template)
    with pytest.raises(InputError, match=r"left over blocks\.2\."):
        dit_params(weights, shapes(DIT_TINY.copy(depth=2), *arrays["input"].shape))


@pytest.mark.parametrize(
    ("size", "patch_size", "width", "published"),
    [
        ("S", 2, 384, 32_865_056),
        ("B", 4, 768, 130_426_496),
        ("L", 8, 1024, 458_578_432),
        ("XL", 2, 1152, 674_834_720),
    ],
)
def test_dit_parameter_counts_are_the_published_ones(size: str, patch_size: int, width: int, published: int) -> None:
    tree = shapes(DiT(size, patch_size, learned_variance=True), 1, 32, 32, 4)
    label_table = 1001 * width
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) + label_table == published


def test_every_network_that_a_config_may_name_stands_there() -> None:
    assert {type(model) for model, _ in CASES.values()} == {*assembly.MODELS.values()}


@pytest.mark.parametrize("case", CASES)
def test_shape_zero_start_and_independence_of_the_batch(case: str) -> None:
    model, shape = CASES[case]
    x_t, t = jax.random.normal(jax.random.key(2), shape), jnp.array([0.001, 0.4, 1.0])
    apply = compiled(model.apply)
    key = jax.random.key(0, impl="rbg")  # compiles in a fraction of the time
    start = apply(compiled(model.init)(key, x_t, t), x_t, t)
    assert start.shape == (*shape[:-1], shape[-1] * (2 if model.learned_variance else 1))
    assert not start.any()

    params = {"params": random_params(model, *shape)}
    output = apply(params, x_t, t)
    changed = apply(params, x_t.at[1:].multiply(-3.0), t.at[1:].add(-0.3))
    np.testing.assert_allclose(output[0], changed[0], atol=1e-5)
    assert np.abs(output[1:] - changed[1:]).min(axis=tuple(range(1, len(shape)))).max() > 0
    assert np.abs(output[0] - apply(params, x_t, t.at[0].set(0.9))[0]).max() > 1e-2


@pytest.mark.parametrize("case", ["unet", "dit", "mlp"])
def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters(case: str) -> None:
    model, shape = CASES[case]
    half = model.copy(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, *shape))} == {jnp.dtype("float32")}
    x_t, t = jax.random.normal(jax.random.key(2), shape), jnp.array([0.001, 0.4, 1.0])
    params = {"params": random_params(model, *shape)}
    exact, rounded = compiled(model.apply)(params, x_t, t), compiled(half.apply)(params, x_t, t)
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).mean() / np.abs(exact).mean()
    assert 1e-5 < error < 3e-2


def test_dropout_acts_only_in_training() -> None:
    model, shape = CASES["mlp"]
    x_t, t, params = jnp.ones(shape), jnp.full(shape[0], 0.5), {"params": random_params(model, *shape)}

    train = compiled(lambda key: model.apply(params, x_t, t, train=True, rngs={"dropout": key}))
    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - compiled(model.apply)(params, x_t, t)).max() > 1e-3


@pytest.mark.parametrize(("case", "remat"), [(c, r) for c in ("dit", "unet") for r in ("blocks", "dots")])
def test_remat_changes_memory_not_numbers(case: str, remat: str) -> None:
    model, shape = CASES[case]
    model = model.copy(remat="none")
    x_t, t, params = jnp.ones(shape), jnp.full(shape[0], 0.5), random_params(model, *shape)

    def gradient(m: Any) -> Any:
        return compiled(jax.grad(lambda p: (m.apply({"params": p}, x_t, t) ** 2).sum()))(params)

    changed = model.copy(remat=remat)
    assert "remat" in str(jax.make_jaxpr(changed.apply)({"params": params}, x_t, t))
    for plain, again in zip(*map(jax.tree.leaves, (gradient(model), gradient(changed))), strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-4)


def test_remat_of_all_but_products_repeats_no_convolution() -> None:
    def convolutions(remat: str) -> int:
        model, shape = UNet(8, (1, 2), remat=remat), (1, 8, 8, 1)
        loss = jax.grad(lambda p, x, t: model.apply(p, x, t).sum())
        program = jax.make_jaxpr(loss)({"params": shapes(model, *shape)}, jnp.ones(shape), jnp.ones(1))
        return str(program).count("conv_general_dilated[")

    assert convolutions("dots") == convolutions("none") < convolutions("blocks")


def test_remat_of_all_but_products_repeats_none_with_weights() -> None:
    def products(remat: str) -> float:
        model, shape = DiT(patch_size=2, width=64, depth=3, num_heads=2, remat=remat), (1, 4, 4, 1)
        loss = jax.grad(lambda p, x, t: model.apply(p, x, t).sum())
        return flops(jax.make_jaxpr(loss)({"params": shapes(model, *shape)}, jnp.ones(shape), jnp.ones(1)))

    # What is repeated of attention is little for so few tokens.
    assert products("none") <= products("dots") < 1.03 * products("none") < 1.2 * products("none") < products("blocks")


@pytest.mark.parametrize("unroll", [2, 3])
def test_unrolling_changes_no_numbers(unroll: int) -> None:
    model: Any = DiT(patch_size=2, width=32, depth=3, num_heads=2)
    shape = (2, 4, 4, 1)
    x_t, t, params = jnp.ones(shape), jnp.full(shape[0], 0.5), random_params(model, *shape)

    def gradient(model: Any) -> Any:
        return compiled(jax.grad(lambda p: (model.apply({"params": p}, x_t, t) ** 2).sum()))(params)

    unrolled = gradient(model.copy(unroll=unroll))
    for plain, again in zip(*map(jax.tree.leaves, (gradient(model), unrolled)), strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-5)


def test_dit_program_does_not_grow_with_depth() -> None:
    def length(depth: int) -> int:
        model: Any = DiT(patch_size=4, width=32, depth=depth, num_heads=4)
        params = shapes(model, 1, 8, 8, 2)
        loss = jax.grad(lambda p, x, t: model.apply({"params": p}, x, t).sum())
        return str(jax.make_jaxpr(loss)(params, jnp.zeros((1, 8, 8, 2)), jnp.zeros(1))).count(" = ")

    assert length(2) == length(12)


@pytest.mark.parametrize("size", [8, 28, 32])
def test_unet_takes_common_picture_sizes(size: int) -> None:
    model = UNet(32, (1, 2, 2), attention_factors=(2,), head_channels=32)
    output = jax.eval_shape(
        lambda x, t: model.init_with_output(jax.random.key(0), x, t)[0], jnp.zeros((1, size, size, 1)), jnp.zeros(1)
    )
    assert output.shape == (1, size, size, 1)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (UNet(32, (1, 2, 2)), (1, 30, 28, 1), "x_t: .*multiples of 4"),
        (UNet(32).copy(resample="bilinear"), (1, 8, 8, 1), "resample: found 'bilinear'"),
        (UNet(32, (1, 2), num_heads=3), (1, 8, 8, 1), "num_heads=3"),
        (DiT("M"), (1, 8, 8, 1), "size: found 'M'; allowed are S, B, L, XL"),
        (DiT(patch_size=3), (1, 8, 8, 1), "multiples of patch_size=3"),
        (DiT(width=30, num_heads=2), (1, 8, 8, 1), "width: found 30"),
        (DiT(remat="all"), (1, 8, 8, 1), "remat: found 'all'; allowed are none, blocks, dots"),
        (MLP(), (1, 8, 8, 1), "x_t: found shape"),
    ],
)
def test_wrong_input_is_named(model: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shapes(model, *shape)
