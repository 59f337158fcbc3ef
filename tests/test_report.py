"""The report: what it says must be what the scores say, and it must open anywhere."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from analytic import PROCESSES
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

from diffad_jax import figures, report, samplers
from diffad_jax.detector import Trained
from diffad_jax.errors import InputError
from diffad_jax.metrics import auroc_by_group, bootstrap_intervals, metrics
from diffad_jax.parametrisation import Prediction
from diffad_jax.report import Pictures, Result, most_and_least, summary_table, write_report

DIGITS = load_digits()
HOSTILE = "<script>alert('x')</script> & \"$a$\""


class Page(HTMLParser):
    """Tags with their attributes, and the text of every table row."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], "a tag was left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def images(self) -> list[bytes]:
        sources = [(attrs["src"] or "").partition(";base64,") for tag, attrs in self.tags if tag == "img"]
        assert {head for head, _, _ in sources} <= {"data:image/png", "data:image/webp"}
        return [base64.b64decode(content, validate=True) for _, _, content in sources]


def setting(digit: int, name: str, channels: int = 0) -> Result:
    """The digit is anomalous; channels = 0 leaves the pictures out."""
    x, labels = DIGITS.images[..., None] / 8 - 1, (DIGITS.target == digit).astype(int)
    mean = x[labels == 0].mean(0)
    error = np.square(x - mean)[..., 0]
    scores = {"distance to mean": error.mean((1, 2)), "<i>corner</i>": error[:, 0, 4], "ink": x.mean((1, 2, 3))}
    first = scores["distance to mean"]
    pictures = None
    if channels:
        shown = most_and_least(first, labels, 4)
        rgb = np.repeat(x[shown], channels, -1)
        reconstruction = np.broadcast_to(mean, rgb.shape)
        pictures = Pictures(rgb, 3 * rgb, reconstruction, error[shown], labels[shown], first[shown])
    return Result(name, labels, scores, float(np.quantile(first, 0.9)), pictures, {"seed": 0, "normal": f"not {digit}"})


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_setting_says_what_the_scores_say_and_needs_nothing_from_outside(tmp_path: Path, channels: int):
    result = setting(0, HOSTILE, channels)
    config = {"model": "unet", "depth": "3", "name": HOSTILE}
    path = write_report(tmp_path / "new" / "report.html", HOSTILE, [result], config)
    text = path.read_text(encoding="utf-8")
    page = Page(text)

    rows = {row[0]: row for row in page.rows}
    for method, scores in result.scores.items():
        assert rows[method][1].startswith(f"{100 * roc_auc_score(result.labels, scores):.2f} ")
        assert rows[method][2].startswith(f"{100 * average_precision_score(result.labels, scores):.2f} ")
    assert rows["depth"][1] == "3" and rows["name"][1] == HOSTILE and "not 0" in page.text
    found = np.mean(result.scores["distance to mean"][result.labels == 1] > result.threshold)
    assert f"{100 * found:.1f} % of the anomalies" in page.text.replace("\n", " ")
    intervals = bootstrap_intervals(result.labels, result.scores["ink"], seed=0).values()
    assert [cell.partition(" ")[2] for cell in rows["ink"][1:]] == [
        f"{100 * a:.2f} – {100 * b:.2f}" for a, b in intervals
    ]

    assert not re.search(r"https?://", text)
    assert not {"script", "link", "i", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) >= 3

    beside = {file.name: file.read_bytes() for file in path.parent.iterdir() if file != path}
    *charts, grid = page.images()
    assert charts == [beside.pop(f"report-{kind}.png") for kind in ("roc", "precision-recall", "scores")]
    exact = pixels(beside.pop("report-pictures.png"))
    assert not beside and np.abs(pixels(grid) - exact).mean() < 3, "the grid in the page is the file beside it"
    for image in (*map(pixels, charts), exact):
        assert len(np.unique(image @ [1 << 16, 1 << 8, 1])) > 50


def test_curves_and_threshold_lie_where_the_figures_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    scores = {"ours": rng.normal(size=100) + labels}
    measured = {"ours": metrics(labels, scores["ours"])}
    drawn = figures.draw(labels, scores, measured, 0.7, None)
    line = drawn["precision-recall"].axes[0].lines[0]
    recall, precision = (np.asarray(values) for values in line.get_data())
    held = {"steps-post": precision[:-1], "steps-pre": precision[1:]}[line.get_drawstyle()]
    assert -np.diff(recall) @ held == pytest.approx(measured["ours"]["aupr"], abs=1e-6)
    dashed = [np.asarray(line.get_xdata()) for line in drawn["scores"].axes[0].lines]
    assert any((x == 0.7).all() for x in dashed)


def test_maps_below_those_of_the_normals_are_drawn():
    grey, errors = np.zeros((2, 8, 8, 1)), np.full((2, 8, 8), -0.5)
    figure = figures.picture_grid(Pictures(grey, grey, grey, errors, np.array([0, 1]), np.array([2.0, 1.0]), None))
    assert pixels(figures.png(figure)).size


def test_a_weak_defect_shows_beside_a_strong_one_and_a_normal_stays_dark():
    grey, heat = np.zeros((3, 8, 8, 1)), np.full((3, 8, 8), -0.5)
    heat[0], heat[1], heat[2] = 500.0, 50.0, 1.0
    shown = Pictures(grey, grey, grey, heat, np.array([1, 1, 0]), np.array([3.0, 2.0, 1.0]))
    (canvas,) = figures.picture_grid(shown).axes[0].get_images()
    tile = np.asarray(canvas.get_array()).shape[1] / 3
    strong, weak, normal = np.asarray(canvas.get_array())[-6, (tile * (np.arange(3) + 0.5)).astype(int)].sum(axis=-1)
    assert strong > 2 > weak > 0.7 > 0.2 > normal > 0


def test_defects_are_outlined_where_the_mask_is_and_larger_pictures_keep_their_pixels():
    zeros = np.zeros((3, 200, 200))
    masks = zeros > 0
    masks[1, 60:90, 120:160] = True
    grey = np.full((3, 200, 200, 1), -0.2)
    pictures = Pictures(grey, grey, grey, zeros, np.array([0, 1, 0]), np.array([3.0, 2.0, 1.0]), masks)
    with_masks, without = (figures.picture_grid(p) for p in (pictures, pictures._replace(masks=None)))
    changed = (pixels(figures.png(with_masks)) != pixels(figures.png(without))).any(-1)
    down, across = np.nonzero(changed)
    tile = 2 * figures.DPI
    band = with_masks.axes[0].get_position().transformed(with_masks.transFigure).get_points() / 100 * figures.DPI
    left, top = band[0, 0], changed.shape[0] - band[1, 1]
    step = tile * 212 / 200  # a picture of 200 and a gap of 12
    assert (across.min() - left - step) / tile == pytest.approx(120 / 200, abs=0.02)
    assert (across.max() - left - step) / tile == pytest.approx(160 / 200, abs=0.02)
    for row, near in ((0, down[down < top + step]), (3, down[down > top + step])):
        edges = (near.min() - top - row * step) / tile, (near.max() - top - row * step) / tile
        assert edges == pytest.approx((60 / 200, 90 / 200), abs=0.02)


def test_defects_and_pixels_have_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "png", lambda figure: b"\x89PNG")
    groups = np.where(DIGITS.target == 0, np.array(["<b>oval</b>", "ring"])[np.arange(len(DIGITS.target)) % 2], "good")
    result = setting(0, "zero")._replace(groups=groups, pixel={"pixel_auroc": 0.91234, "aupro": 0.5})
    page = Page(write_report(tmp_path / "report.html", "digits", [result], {}).read_text(encoding="utf-8"))
    rows = {row[0]: row for row in page.rows if row[0] in groups}
    assert list(rows) == ["<b>oval</b>", "ring"]
    for column, scores in enumerate(result.scores.values()):
        for name, found in auroc_by_group(result.labels, scores, groups, seed=0).items():
            low, high = found.interval
            assert rows[name][1] == str(found.size) == str(np.count_nonzero(groups == name))
            assert rows[name][2 + column] == f"{100 * found.auroc:.2f} {100 * low:.2f} – {100 * high:.2f}"
    assert ["distance to mean", "91.23", "50.00"] in page.rows
    assert summary_table([result]).splitlines()[-1].split() == ["zero", "91.23", "50.00"]

    other = result._replace(name="other", groups=None, pixel={"pixel_auroc": 0.7, "aupro": 0.1})
    page = Page(write_report(tmp_path / "both.html", "digits", [result, other], {}).read_text(encoding="utf-8"))
    assert ["mean", "80.62", "30.00"] in page.rows and ["other", "70.00", "10.00"] in page.rows
    assert summary_table([result, other]).splitlines()[-1].split() == ["mean", "80.62", "30.00"]
    for wrong, said in [
        (result._replace(groups=groups[1:]), r"'zero': groups have shape \(1796,\)"),
        (result._replace(pixel={"aupro": 0.5}), r"found pixel \['aupro'\]"),
    ]:
        with pytest.raises(InputError, match=said):
            write_report(tmp_path / "wrong.html", "digits", [wrong], {})
    assert not list(tmp_path.glob("wrong*"))


def test_ten_settings_have_the_mean_over_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = [setting(digit, f"digit {digit}") for digit in range(10)]
    aurocs = np.array([[roc_auc_score(r.labels, s) for s in r.scores.values()] for r in results])
    auprs = np.array([[average_precision_score(r.labels, s) for s in r.scores.values()] for r in results])
    mean = [[f"{100 * value:.2f}" for value in table.mean(0)] for table in (aurocs, auprs)]

    lines = summary_table(results).splitlines()
    assert [line.split()[1:] for line in lines if line.startswith("mean")] == mean
    assert lines[4].split() == ["digit", "3", *(f"{100 * value:.2f}" for value in aurocs[3])]
    assert "mean " not in summary_table(results[:1]).replace("distance to mean", "")

    # Both are slow and tested above.
    monkeypatch.setattr(figures, "png", lambda figure: b"\x89PNG")
    intervals = dict.fromkeys(report.METRICS, (0.0, 1.0))
    monkeypatch.setattr(report, "bootstrap_intervals", lambda labels, scores, seed: intervals)
    page = Page(write_report(tmp_path / "report.html", "digits", results, {}).read_text(encoding="utf-8"))
    assert [row[1:] for row in page.rows if row[0] == "mean"] == mean
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert targets == {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs} and len(targets) == 10
    assert len(list(tmp_path.glob("report-digit-*-roc.png"))) == 10 and not list(tmp_path.glob("*pictures*"))
    assert page.text.count("not 7") == 1 and page.text.count("seed") == 1  # what all share is said once

    fewer = results[0]._replace(scores={"ink": results[0].scores["ink"]})
    assert summary_table([results[1], fewer]).splitlines()[3].split()[1] == "–"


def test_names_that_files_cannot_tell_apart_have_figures_of_their_own(tmp_path: Path) -> None:
    results = [setting(0, name, 1)._replace(pictures=None) for name in ("lr 0.1", "LR-0-1", "lr_0")]
    path = write_report(tmp_path / "report.html", "three", results, {})
    assert {file.name for file in tmp_path.glob("*-roc.png")} == {
        f"report-{place}-roc.png" for place in ("lr-0-1", "lr-0-1-2", "lr_0")
    }
    for place, name in (("lr-0-1", "lr 0.1"), ("lr-0-1-2", "LR-0-1")):
        assert f'<a href="#{place}">{name}</a>' in path.read_text() and f'<section id="{place}">' in path.read_text()


def test_a_failure_leaves_the_old_report_and_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = setting(0, "digit 0")
    monkeypatch.setattr(figures, "png", lambda figure: b"\x89PNG")
    path = write_report(tmp_path / "report.html", "old", [result], {})
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="no space"):
            report.write_report(path, "new", [result], {})
    bad = Pictures(*(np.zeros((2, 8, 8, 2)),) * 3, np.zeros((2, 8, 8)), np.zeros(2), np.zeros(2))
    misplaced = setting(0, "digit 0", 1).pictures._replace(masks=np.zeros((2, 8, 8), bool))
    nan = {"diffusion": np.where(result.labels == 1, np.nan, 0.0)}
    for wrong, said in [
        ([result._replace(pictures=bad)], r"pictures\.x_0: .*\(2, 8, 8, 2\)"),
        ([result._replace(pictures=misplaced)], r"pictures\.masks: .*\(2, 8, 8\)"),
        ([result._replace(scores=nan)], "digit 0.*diffusion.*not finite"),
        ([result, result], "different ones"),
        ([result._replace(threshold=float("nan"))], "threshold nan"),
        ([], "at least one"),
    ]:
        with pytest.raises(InputError, match=said):
            write_report(path, "new", wrong, {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_shown_items_are_the_extremes_and_the_most_wrongly_ranked():
    scores = np.array([0.1, 0.9, 0.5, 0.4, 0.3, 0.8, 0.2, 0.7, 0.6])
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1])
    # Highest 0.9, lowest 0.1, highest normal 0.8, lowest anomaly 0.3.
    assert most_and_least(scores, labels, 1).tolist() == [1, 5, 4, 0]
    assert sorted(most_and_least(scores, labels, 9)) == list(range(9))
    with pytest.raises(InputError, match="k: found 0"):
        most_and_least(scores, labels, 0)


def test_reconstructions_start_from_the_time_that_the_config_names() -> None:
    p = PROCESSES["cosine"]
    system: Any = SimpleNamespace(
        shape=(4, 4, 1),
        process=p,
        sampler=samplers.ddim(p),
        denoise=lambda params: lambda x, t: Prediction(jnp.zeros_like(x), x),
    )

    def noised(time: float) -> np.ndarray:
        config = ConfigDict({"seed": 0, "scoring": {"picture_time": time, "picture_steps": 1}})
        x_t, _ = Trained(config, system, None, None)._reconstructed({}, np.zeros((1, 4, 4, 1), np.float32))  # type: ignore[arg-type]
        return np.asarray(x_t)

    ratio = p.sigma(jnp.array(0.8)) / p.sigma(jnp.array(0.2))
    np.testing.assert_allclose(noised(0.8) / noised(0.2), ratio, rtol=1e-4)
