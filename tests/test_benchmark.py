"""The benchmark's counts by hand, its figures on a tiny config, and the PyTorch twins, where PyTorch is installed."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import flags
from absl.testing import flagsaver
from processes import command

from diffad_jax.models import MLP, DiT, UNet
from diffad_jax.models.published import dit_params, unet_params
from diffad_jax.training import Training
from experiments import benchmark

TWINS = {
    "unet": UNet(16, (1, 2), num_blocks=2, attention_factors=(2,), num_heads=2, norm_groups=8),
    "unet_conv": UNet(16, (1, 2), attention_factors=(2,), head_channels=8, scale_shift=False, resample="conv"),
    "dit": DiT(patch_size=2, width=32, depth=2, num_heads=2),
}


LINES = ((1, 1), (2, 1), (30, 0.1), (50, 0.2), (9, 1))


@pytest.fixture(autouse=True)
def parsed_flags() -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["benchmark"])


def test_figures_of_a_tiny_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told in a table and a file with the command and the machine, beside a trace."""
    monkeypatch.setattr(benchmark, "LOOP_SECONDS", 0.4)
    monkeypatch.setattr(benchmark, "CONFIG", SimpleNamespace(value=tiny.get_config()))
    monkeypatch.setattr("sys.argv", ["benchmark", "--rounds=1"])
    out, profile = tmp_path / "figures.json", tmp_path / "traces"
    with flagsaver.flagsaver(rounds=1, out=str(out), profile=str(profile)):
        benchmark.main([])
    written, told = json.loads(out.read_text()), capsys.readouterr().out
    assert (
        written["command"] == "python -m experiments.benchmark --rounds=1"
        and f"jax {jax.__version__}" in written["versions"]
    )
    assert all(f"{key}: {written[key]}\n" in told for key in ("command", "devices", "processor", "versions"))
    assert len(list((profile / "unet").rglob("*.trace.json.gz"))) == 1
    figures = written["unet"]
    assert f"| train_of_peak | {figures['train_of_peak']:,.3f} |\n" in told
    assert figures["parameters"] > 1000
    assert figures["train_examples_per_second"] == pytest.approx(16 * figures["train_steps_per_second"])
    assert figures["train_of_peak"] == pytest.approx(figures["train_gflops"] / figures["matmul_gflops"])
    assert figures["train_of_peak"] > 0
    evaluations = figures["network_evaluations_per_datum"] * figures["score_examples_per_second"]
    assert figures["score_of_train"] == pytest.approx(evaluations / figures["train_examples_per_second"] / 3)


def test_the_product_of_a_transformer_has_a_row_for_each_token() -> None:
    network = DiT(patch_size=8, width=64, depth=1, num_heads=2)
    assert benchmark.product_shape(network, (512,), 64) == (64 * 64, 64, 256)
    assert benchmark.product_shape(network, (100,), 2) == (2 * 13, 64, 256)
    assert benchmark.product_shape(network, (32, 16, 3), 4) == (4 * 8, 64, 256)


def test_the_loop_is_told_by_its_log_beside_the_bare_step() -> None:
    """A step of 20 ms, and a loop whose third and fourth lines tell of 30 and 50 steps/s."""

    def loop(workdir: str, training: Training) -> None:
        assert training.num_steps == 5 * training.log_every == training.checkpoint_every
        lines = [{"steps_per_second": rate, "data_wait": wait} for rate, wait in LINES]
        (Path(workdir) / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    figures = benchmark.loop_figures(loop, Training(num_steps=1, batch_size=1), lambda: time.sleep(0.02), 1.0)
    assert figures["loop_steps_per_second"] == 40 and figures["data_wait"] == pytest.approx(0.15)
    assert figures["loop_of_bare"] == pytest.approx(40 / 50, rel=0.4)


def test_training_sees_patches_and_scoring_whole_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LOOP_SECONDS", 0.1)
    config = tiny.get_config()
    config.parallel, config.pipeline = "pmap", {"crop": 8}
    seen, make_levels, fit = set(), benchmark.make_levels, benchmark.fit

    def watched(*given: Any) -> Any:
        score = make_levels(*given)
        return lambda x: (seen.add(x.shape), score(x))[1]

    def watched_fit(step: Any, init: Any, rows: Any, *given: Any, **more: Any) -> Any:
        seen.add((type(rows[:1]), rows.shape, more["pipeline"].crop))
        return fit(step, init, rows, *given, **more)

    monkeypatch.setattr(benchmark, "make_levels", watched)
    monkeypatch.setattr(benchmark, "fit", watched_fit)
    figures = benchmark.measure(config, (16, 16, 1), "tiny")
    assert figures["matmul_shape"].startswith(f"{16 * 8 * 8 // 4} x ")
    assert seen == {(64, 16, 16, 1), (np.ndarray, (32, 16, 16, 1), 8)}


def test_the_loop_reads_pictures_from_files_as_runs_do(tmp_path: Path) -> None:
    rows = benchmark.training_rows(tmp_path, (32, 32, 3), 6)
    assert not isinstance(rows, np.ndarray) and len(list(tmp_path.glob("*.jpg"))) == 6
    assert rows[np.array([4, 1])].shape == (2, 32, 32, 3) and 0.3 < np.std(rows[:]) < 0.7
    assert isinstance(benchmark.training_rows(tmp_path, (512,), 6), np.ndarray)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="here the suite runs")
def test_the_suite_of_gpus_is_refused_where_there_is_none(tmp_path: Path) -> None:
    ended = command("experiments.benchmark", "--suite=gpu", output=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --suite: found 'gpu', but JAX sees no accelerator; allowed here is 'cpu'\n"


@pytest.mark.parametrize("name", TWINS)
def test_twins_compute_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    from experiments.torch_twins import twin

    model: Any = TWINS[name]
    network = twin(model, (8, 8, 3))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weights = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    t = np.array([0.3, 0.9], np.float32)
    template = jax.eval_shape(model.init, jax.random.key(0), x, t)["params"]
    if isinstance(model, UNet):
        params = unet_params(weights, template)
    else:
        positions, no_label = network.positions.numpy()[None], np.zeros((1, 32), np.float32)
        weights |= {"pos_embed": positions, "y_embedder.embedding_table.weight": no_label}
        params = dit_params(weights, template)
    found = network(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t)).detach().permute(0, 2, 3, 1)
    wanted = model.apply({"params": params}, x, t)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_mlp_twin_has_as_many_parameters() -> None:
    pytest.importorskip("torch")
    from experiments.torch_twins import twin

    model: Any = MLP(width=32, depth=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 10)), jnp.zeros(2))
    assert sum(p.numel() for p in twin(model, (10,)).parameters()) == sum(x.size for x in jax.tree.leaves(shapes))
