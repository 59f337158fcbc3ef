"""Every config that ships is one that the training loop, the benchmark and the scoring take."""

import importlib
from pathlib import Path

import jax
import pytest

from configs import _pictures, benchmark, digits
from diffad_jax import plan, settings
from diffad_jax.data.loading import load
from diffad_jax.errors import InputError

ROOT = Path(__file__).parents[1]
# With an underscore begins what configs share, without a network.
SHAPES = {
    **dict.fromkeys(("adbench", "adbench_dit"), (512,)),
    **dict.fromkeys(("benchmark", "cifar10_dit", "cifar10_unet", "svhn"), (32, 32, 3)),
    **dict.fromkeys(("fashion_mnist", "mnist_c"), (28, 28, 1)),
    "digits": (8, 8, 1),
}
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_taken(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    shape = SHAPES.get(name) or (config.data.size, config.data.size, 3)
    system, init, _, training = plan.define(config, shape)
    settings.parallel_of(config, training)
    settings.pipeline_of(config, shape)
    plan.check(system, jax.eval_shape(init).params, shape, settings.scoring_of(config).combination)


def test_digits_may_miss_several_classes() -> None:
    assert load(digits.get_config("3,4").data)[0].name == "digits_anomalous_34"
    with pytest.raises(InputError, match="anomalous_class: found 'x'; allowed are 0, 1"):
        load(digits.get_config("x").data)


@pytest.mark.parametrize("name", benchmark.MODELS)
def test_a_network_of_the_benchmark_is_taken(name: str) -> None:
    config, shape = benchmark.get_config(name), benchmark.SHAPES[name]
    system, init, *_ = plan.define(config, shape)
    plan.check(system, jax.eval_shape(init).params, shape, config.scoring.get("combination", ""))


def test_pictures_of_classes_are_compared_in_colours_and_either_side_may_be_named() -> None:
    assert _pictures.of_classes("svhn", "3").score.colours and "colours" not in _pictures.get_config().score
    data = _pictures.of_classes("svhn", "anomalous:1").data
    assert data.anomalous_class == "1" and "normal_class" not in data
