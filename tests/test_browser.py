"""The report as a person opens it: headless Chromium, from a file, without a network, on a desktop and on a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffad_jax.report import Pictures, Result, most_and_least, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)
WIDTHS = {"desktop": 1280, "phone": 360}
# The page under test forbids scripts, so another page looks into it: one frame a width, the findings as JSON in the DOM.
FRAME = '<iframe src="{}" style="width: {}px; height: 900px; border: 0"></iframe>'
LOOK = """<!DOCTYPE html><body>FRAMES<pre id="found"></pre><script>
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
  const right = (element) => element.getBoundingClientRect().right;
  const text = [...page.querySelectorAll("h1, h2, p, dd, summary, td, th")];
  return {
    title: page.title, width, content: root.scrollWidth,
    images: [...page.images].map((image) => ({alt: image.alt, natural: image.naturalWidth, shown: image.width})),
    cut: text.filter((one) => right(one) > width && !one.closest(".scroll")).map((one) => one.textContent),
    boxes: [...page.querySelectorAll(".scroll")].map(right),
  };
}
window.onload = () => {
  found.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
};
</script></body>"""


def chromium(page: Path, *flags: str) -> tuple[str, list[str]]:
    """What a run on the page prints, and its console's messages with the addresses it asked of the network."""
    assert CHROMIUM
    log = page.with_suffix(".network.json")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += ["--no-first-run", "--enable-logging=stderr", f"--log-net-log={log}", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    finished = subprocess.run(
        [*command, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser's own requests, for updates and the like, have "not an origin".
    asked = {r["url"] for r in requests if "url" in r and r.get("initiator", "not an origin") != "not an origin"}
    outside = sorted(url for url in asked if not url.startswith(("file:", "data:")))
    return finished.stdout, [*re.findall(r"CONSOLE.*", finished.stderr), *outside]


def look(path: Path) -> tuple[list[dict], list[str]]:
    """The findings of LOOK on the page for each of WIDTHS, and whatever it said or asked of the network."""
    frames = path.with_name("frames.html")
    frames.write_text(LOOK.replace("FRAMES", "".join(FRAME.format(path.name, width) for width in WIDTHS.values())))
    dom, outside = chromium(frames, "--dump-dom")
    found = re.search(r'<pre id="found">(.+?)</pre>', dom, re.DOTALL)
    assert found, dom[:2000]
    return json.loads(html.unescape(found[1])), outside


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A setting of colour pictures of 224 x 224 with masks and four kinds of defect, and one of feature vectors."""
    generator = np.random.default_rng(0)
    count, size = 60, 224
    labels = (np.arange(count) >= 20).astype(int)
    groups = np.array(["good", "scratch", "a-defect-with-an-uncommonly-long-name", "hole", "crack"])[
        np.where(labels, np.arange(count) % 4 + 1, 0)
    ]
    scores = {name: generator.normal(size=count) + labels for name in ("diffusion (DiT)", "iforest", "ocsvm", "copod")}
    shown = most_and_least(scores["diffusion (DiT)"], labels, 3)
    x = np.broadcast_to(np.linspace(-0.5, 0.5, size)[:, None, None], (len(shown), size, size, 3))
    masks = np.zeros((len(shown), size, size), bool)
    masks[labels[shown] == 1, 50:120, 80:170] = True
    noised = 0.7 * x + 0.7 * generator.normal(size=x.shape)
    error = masks + 0.1 * generator.random(masks.shape)
    pictures = Pictures(x, noised, x, error, labels[shown], scores["diffusion (DiT)"][shown], masks)
    pixel = {"pixel_auroc": 0.9, "aupro": 0.7}
    facts: dict[str, str | float] = {"training normals": 200, "protocol": "clean", "source": "a" * 60}
    first = Result("bottles", labels, scores, 0.5, pictures, facts, groups, pixel)
    results = [
        first,
        first._replace(name="vectors", pictures=None, groups=None, pixel=None),
    ]
    config = {"config.data.path": "/long" * 60}
    return write_report(tmp_path_factory.mktemp("browser") / "report.html", "Two settings", results, config)


def test_the_report_opens_whole_at_every_width_and_asks_nothing_of_the_network(report: Path) -> None:
    assert report.stat().st_size < 15e6
    found, outside = look(report)
    assert outside == []
    for page, width in zip(found, WIDTHS.values(), strict=True):
        assert page["title"] == "Two settings"
        assert page["width"] == width and page["content"] <= width, "the page scrolls sideways"
        assert page["cut"] == [] and max(page["boxes"]) <= width
        assert len(page["images"]) == 3 + 1 + 3 and all(image["natural"] > 600 for image in page["images"])
        grids = [image for image in page["images"] if image["alt"].startswith("pictures")]
        # Six columns and the names beside them: about 90 CSS pixels a picture at the least, by scrolling on a phone.
        assert len(grids) == 1 and all(grid["shown"] >= 800 for grid in grids)


def test_the_figures_are_painted(report: Path) -> None:
    shot = report.with_name("shot.png")
    chromium(report, f"--screenshot={shot}", "--window-size=1280,3000")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (3000, 1280, 3)
    for name, colour in {"normal": (0, 114, 178), "anomaly": (213, 94, 0), "outline": (34, 211, 238)}.items():
        near = np.abs(pixels - colour).max(-1) < 40
        assert near.sum() > 500, f"{name} is not to be seen"


def test_a_page_that_breaks_these_rules_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text(f"""<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="script-src 'none'">
<title>broken</title><p style="width: 2000px">{"wide " * 100}</p><script>alert(1)</script>
<img src="http://example.com/x.png"><img src="data:image/png;base64,iVBORw0KGgo=">""")
    found, outside = look(path)
    assert "http://example.com/x.png" in outside and "inline script violates" in outside[0]
    for page, width in zip(found, WIDTHS.values(), strict=True):
        assert page["content"] > width and len(page["cut"]) == 1
        assert [image["natural"] for image in page["images"]] == [0, 0]
