"""Every config that ships is one that the training loop, the benchmark and the scoring take."""

import importlib
from pathlib import Path

import pytest

from configs import benchmark, digits
from diffad_jax import runs
from diffad_jax.data.loading import load

ROOT = Path(__file__).parents[1]
# With an underscore begins what configs share, without a network.
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_taken(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    size = config.get("data", {}).get("size", 32)
    shape = (512,) if config.model.name == "MLP" else (size, size, 3)
    _, _, _, training = runs.define(config, shape)
    runs.parallel_of(config, training)
    runs.pipeline_of(config, shape)
    runs.scoring_of(config)


def test_digits_may_miss_several_classes() -> None:
    named = digits.get_config("3,4").data
    assert load(named)[0].name == "digits_anomalous_34" and digits.get_config("3").data.anomalous_class == 3


@pytest.mark.parametrize("name", benchmark.MODELS)
def test_a_network_of_the_benchmark_is_taken(name: str) -> None:
    runs.define(benchmark.get_config(name), benchmark.SHAPES[name])
