"""Pictures on disk: every mode and fault, the layouts of folders, and masks that stay on their pictures."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import logging
from PIL import Image

from diffad_jax.data import folders
from diffad_jax.data.classes import class_setting, select_classes
from diffad_jax.data.dataset import Dataset
from diffad_jax.data.folders import class_folders, labelled_folder, mvtec, picture_folder
from diffad_jax.data.loading import load
from diffad_jax.data.npz_pictures import npz_classes, npz_classes_each
from diffad_jax.data.pictures import MaskFiles, PictureFiles, read_mask, read_picture, readable
from diffad_jax.errors import InputError


def write(file: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, **options)
    return file


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def truncated(file: Path) -> Path:
    write(file, noise(40, 40, 3))
    file.write_bytes(file.read_bytes()[:-800])
    return file


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged as a warning."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: lines.append(message % values))
    yield lines


def test_every_mode_gives_the_pixels_that_a_viewer_shows(tmp_path: Path) -> None:
    grey, colour = noise(6, 5), noise(6, 5, 3)
    two = (grey > 99).astype(np.uint8) * 255
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    wide = grey.astype(np.uint16) * 257
    opaque = np.dstack([colour, np.full((6, 5), 255, np.uint8)])
    palette = Image.fromarray(colour).quantize(30)
    shown = np.asarray(palette.convert("RGB"))
    cases: list[tuple[str, np.ndarray | Image.Image, np.ndarray, np.ndarray]] = [
        ("L.png", grey, grey, np.dstack([grey] * 3)),
        ("1.png", Image.fromarray(grey > 99), two, np.dstack([two] * 3)),
        ("I16.png", wide, grey, np.dstack([grey] * 3)),
        ("I16.tif", wide + np.uint16(128) * (grey < 255), grey, np.dstack([grey] * 3)),
        ("I.tif", wide.astype(np.int32) - np.int32(128) * (grey > 0), grey, np.dstack([grey] * 3)),
        ("F.tiff", wide.astype(np.float32), grey, np.dstack([grey] * 3)),
        ("RGB.bmp", colour, luma, colour),
        ("RGBA.png", opaque, luma, colour),
        ("P.png", palette, np.asarray(Image.fromarray(shown).convert("L")), shown),
        ("P.gif", palette, np.asarray(Image.fromarray(shown).convert("L")), shown),
        ("LA.png", Image.fromarray(np.dstack([grey, np.full((6, 5), 255, np.uint8)])), grey, np.dstack([grey] * 3)),
    ]
    for name, pixels, one, three in cases:
        file = write(tmp_path / name, pixels)
        for channels, expected in ((1, one[..., None]), (3, three)):
            found = read_picture(file, channels)
            assert found.dtype == np.uint8 and np.array_equal(found, expected), (name, channels)
    cmyk = write(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    np.testing.assert_allclose(read_picture(cmyk, 3), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=3)
    # Whatever colour lies under it, transparent is white; half transparent is half way to it.
    clear = opaque.copy()
    clear[..., 3] = [0, 0, 255, 255, 128]
    found = read_picture(write(tmp_path / "clear.png", clear), 3)
    assert (found[:, :2] == 255).all() and np.array_equal(found[:, 2:4], colour[:, 2:4])
    np.testing.assert_allclose(found[:, 4], (colour[:, 4] + 255.0) / 2, atol=2)
    keyed = write(tmp_path / "keyed.png", palette, transparency=palette.getpixel((0, 0)))
    assert (read_picture(keyed, 3)[0, 0] == 255).all()


def test_pictures_stand_upright_and_single_pixels_fill_the_size(tmp_path: Path) -> None:
    pixels = noise(16, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera lay on its side: turn clockwise to show.
    file = write(tmp_path / "turned.png", pixels, exif=exif)
    assert np.array_equal(read_picture(file, 1)[..., 0], np.rot90(pixels, -1))
    dot = write(tmp_path / "dot.png", np.full((1, 1), 77, np.uint8))
    for fit in ("crop", "stretch"):
        assert (read_picture(dot, 3, 9, fit) == 77).all() and read_picture(dot, 3, 9, fit).shape == (9, 9, 3)
        assert (read_picture(write(tmp_path / "line.png", np.full((1, 300), 77, np.uint8)), 1, 4, fit) == 77).all()


@pytest.mark.parametrize("size", [10, 32, 64])
def test_masks_follow_their_pictures_through_resize_and_crop(tmp_path: Path, size: int) -> None:
    for shape in ((90, 140), (140, 90), (64, 64), (31, 50)):
        mask = np.zeros(shape, np.uint8)
        height, width = shape
        mask[height // 5 : height // 2, width // 3 : width // 2] = 255
        file = write(tmp_path / f"{shape}.png", mask)
        for fit in ("crop", "stretch"):
            picture, placed = read_picture(file, 1, size, fit)[..., 0] > 127, read_mask(file, size, fit)
            assert placed.any() and placed.dtype == bool
            assert (picture & placed).sum() / (picture | placed).sum() > 0.8, (shape, fit)
            # The crop keeps the aspect and the centre; stretching keeps the fractions.
            side = min(shape) if fit == "crop" else height
            top = (height // 5 - (height - side) // 2) / side * size
            assert abs(np.flatnonzero(placed.any(axis=1))[0] - max(top, 0)) <= 0.5


def test_masks_keep_their_area_and_small_defects_survive(tmp_path: Path) -> None:
    soft = Image.fromarray(np.pad(np.full((40, 40), 255, np.uint8), 30)).resize((80, 80), Image.Resampling.BICUBIC)
    assert abs(read_mask(write(tmp_path / "soft.png", soft), 40).mean() - 0.16) < 0.005
    dot = np.zeros((100, 100), np.uint8)
    dot[40, 60] = 255
    assert np.argwhere(read_mask(write(tmp_path / "dot.png", dot), 10)).tolist() == [[4, 6]]
    labels = np.zeros((4, 4), np.uint8)
    labels[0, :3] = 1, 2, 3
    assert np.array_equal(read_mask(write(tmp_path / "labels.png", labels)), labels > 0)
    assert np.array_equal(read_mask(write(tmp_path / "deep.png", labels.astype(np.uint16))), labels > 0)
    shown = np.dstack([np.full((4, 4, 3), 255, np.uint8), labels * 85])
    assert np.array_equal(read_mask(write(tmp_path / "clear.png", shown)), labels > 1)
    assert not read_mask(write(tmp_path / "black.png", np.zeros((9, 9), np.uint8)), 4).any()


def test_bad_files_are_named_with_their_cause(tmp_path: Path) -> None:
    (tmp_path / "foreign.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    write(tmp_path / "unit.tif", np.linspace(0, 0.9, 12, dtype=np.float32).reshape(3, 4))
    write(tmp_path / "full.tif", np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    write(tmp_path / "large.tif", np.full((3, 4), 70000, np.int32))
    for file, cause in [
        (truncated(tmp_path / "cut.png"), "truncated"),
        (truncated(tmp_path / "cut.bmp"), "truncated"),
        (tmp_path / "foreign.png", "cannot identify image file"),
        (tmp_path / "empty.png", "cannot identify image file"),
        (tmp_path / "absent.png", "No such file"),
        (tmp_path / "unit.tif", "mode F, values 0 to 0.9, allowed are 0 to 65535"),
        (tmp_path / "large.tif", "values 70000 to 70000"),
    ]:
        for read in (lambda file: read_picture(file, 3), lambda file: PictureFiles([file], 8)[:1], read_mask):
            with pytest.raises(InputError) as caught:
                read(file)
            line = str(caught.value)
            assert line.startswith(f"{file}: cannot be read as a picture (") and cause in line and "\n" not in line
            assert line.count(file.name) == 1
    bytes_as_floats = write(tmp_path / "bytes.tif", np.linspace(0, 255, 12, dtype=np.float32).reshape(3, 4))
    with pytest.raises(
        InputError, match="values 0 to 255, allowed are 0 to 65535, and above 255 where they are floats"
    ):
        read_picture(bytes_as_floats, 1)
    assert read_mask(bytes_as_floats).any()
    with pytest.raises(InputError, match="mode F, values 0 to 1, allowed are 0 to 65535"):
        read_picture(tmp_path / "full.tif", 3)
    assert read_mask(tmp_path / "full.tif").sum() == 11, "labels are another matter"
    for arguments, message in [((3, 0), "size: found 0"), ((2, 8), "channels: found 2"), ((3, 8, "pad"), "'pad'")]:
        with pytest.raises(InputError, match=message):
            read_picture(tmp_path / "unit.tif", *arguments)  # type: ignore[arg-type]


def test_unreadable_files_are_skipped_counted_and_named_on_request(tmp_path: Path, warnings: list[str]) -> None:
    good = [write(tmp_path / f"{i}.png", noise(9, 9)) for i in range(3)]
    files = [good[0], truncated(tmp_path / "cut.png"), good[1], tmp_path / "absent.png", good[2]]
    assert readable(files) == files and not warnings
    assert readable(files, "skip") == good
    assert len(warnings) == 1 and warnings[0].startswith("skipped 2 of 5 pictures: ")
    assert "cut.png: cannot be read" in warnings[0] and "absent.png: cannot be read" in warnings[0]
    with pytest.raises(InputError, match="on_error: found 'ignore'"):
        readable(files, "ignore")


@pytest.mark.parametrize(("bits", "levels"), [(12, 17), (10, 5), (16, 0), (8, 0)])
def test_a_camera_of_12_bits_in_files_of_16_is_told(
    bits: int, levels: int, tmp_path: Path, warnings: list[str]
) -> None:
    kind = np.uint8 if bits == 8 else np.uint16
    ramp = np.linspace(0, 2**bits - 1, 4096).reshape(64, 64).astype(kind)
    files = [write(tmp_path / f"{i}.png", ramp) for i in range(3)]
    readable(files)
    assert not levels or len(np.unique(read_picture(files[0], 1))) == levels
    assert [f"{levels} grey levels are left" in line for line in warnings] == [True] * bool(levels)


def test_rows_are_indexed_as_arrays_are_and_survive_pickling(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.png", noise(7 + i, 9, 3)) for i in range(5)]
    rows = PictureFiles(files, 8)
    whole = np.asarray(rows)
    assert rows.shape == whole.shape == (5, 8, 8, 3) and rows.dtype == whole.dtype == np.uint8 and len(rows) == 5
    for index in (slice(1, 4), slice(None, None, -2), np.array([3, 3, -1]), np.array([], int), np.arange(5) > 2, 2, -1):
        assert np.array_equal(rows[index], whole[index])
    with pytest.raises(IndexError):
        rows[np.array([5])]
    assert np.asarray(rows, np.float32).dtype == np.float32
    masks = MaskFiles([None, files[0]], 8)
    assert masks.shape == (2, 8, 8) and masks[:].any(axis=(1, 2)).tolist() == [False, True]
    for one in (rows, masks):
        copy = pickle.loads(pickle.dumps(one))
        assert np.array_equal(copy[:], one[:]) and copy.files == one.files


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_ten_thousand_files_stream_in_bounded_memory(tmp_path: Path) -> None:
    root = tmp_path / "many"
    first = write(root / "00000.png", noise(16, 16, 3))
    for i in range(1, 10_000):
        os.link(first, root / f"{i:05d}.png")
    rows = PictureFiles(picture_folder(root), 64)
    assert len(rows) == 10_000
    one = int(rows[0].sum())
    assert int(rows[:500].sum()) == 500 * one
    before = resident_megabytes()
    for start in range(0, len(rows), 500):
        assert int(rows[start : start + 500].sum()) == 500 * one
    # All of them are 123 MB, one batch is 6 MB.
    assert resident_megabytes() - before < 30


def make_mvtec(root: Path, mask_suffix: str = ".png") -> dict[str, np.ndarray]:
    """Twelve grey training pictures of various sizes, two good ones and three defects; gives the masks by stem."""
    for i in range(12):
        write(root / "train" / "good" / f"{i:03d}.png", noise(20 + i, 30))
    for i in range(2):
        write(root / "test" / "good" / f"{i:03d}.bmp", noise(25, 20 + i))
    masks = {}
    for kind, count in (("crack", 2), ("zap", 1)):
        for i in range(count):
            mask = np.zeros((24, 36 + i), np.uint8)
            mask[6:12, 6 * i : 6 * i + 9] = 255
            masks[f"{kind}/{i:03d}"] = mask > 0
            write(root / "test" / kind / f"{i:03d}.JPG", noise(24, 36 + i))
            write(root / "ground_truth" / kind / f"{i:03d}_mask{mask_suffix}", mask)
    return masks


def test_mvtec_pairs_pictures_labels_groups_and_masks(tmp_path: Path, warnings: list[str]) -> None:
    truth = make_mvtec(tmp_path / "tile")
    for hidden in ("train/good/.hidden.png", "test/good/notes.txt"):
        (tmp_path / "tile" / hidden).touch()
    data = mvtec(tmp_path / "tile", 12)
    assert isinstance(data, Dataset) and data.masks is not None and data.groups is not None
    assert data.name == "tile" and data.train.shape == (12, 12, 12, 1) and data.train.dtype == np.uint8
    assert data.groups.tolist() == ["good", "good", "crack", "crack", "zap"] and data.labels.tolist() == [0, 0, 1, 1, 1]
    masks = np.asarray(data.masks)
    assert masks.shape == (5, 12, 12) and not masks[:2].any()
    for found, expected in zip(masks[2:], truth.values()):
        stretched = Image.fromarray(expected.astype(np.uint8) * 255).resize((12, 12), Image.Resampling.BOX)
        assert np.array_equal(found, np.asarray(stretched) >= 128)
    assert mvtec(tmp_path / "tile", 12, channels=3).test.shape == (5, 12, 12, 3)  # type: ignore[union-attr]
    # One colour picture among the training files makes all three-channelled; a skipped defect takes its mask along.
    write(tmp_path / "tile" / "train" / "good" / "colour.png", noise(20, 20, 3))
    truncated(tmp_path / "tile" / "train" / "good" / "cut.png")
    (tmp_path / "tile" / "test" / "crack" / "000.JPG").write_text("foreign")
    fewer = mvtec(tmp_path / "tile", 12, on_error="skip")
    assert isinstance(fewer, Dataset) and fewer.train.shape == (13, 12, 12, 3)
    assert len(fewer.test) == 4 and np.array_equal(np.asarray(fewer.masks), masks[[0, 1, 3, 4]])
    assert len(warnings) == 1 and "skipped 2 of 19" in warnings[0]
    (tmp_path / "tile" / "test" / "crack" / "000.JPG").unlink()
    with pytest.raises(InputError, match="cut.png: cannot be read as a picture"):
        np.asarray(mvtec(tmp_path / "tile", 12).train)  # type: ignore[union-attr]


def test_mvtec_categories_and_faults_of_the_layout(tmp_path: Path) -> None:
    for name in ("nut", "tile"):
        make_mvtec(tmp_path / name, ".bmp")

    def names(**choice: Any) -> list[str]:
        return [data.name for data in load({"name": "mvtec", "path": str(tmp_path), "size": 8, **choice})]

    assert names() == ["nut", "tile"] and names(categories="nut") == ["nut"]
    # As flags have lists, also where the config holds a list already.
    assert names(categories="tile, nut") == names(categories=("tile,nut",)) == names(categories=["tile", "nut"])
    with pytest.raises(InputError, match=r"config.data.categories: found \(1,\)"):
        names(categories=(1,))
    with pytest.raises(InputError, match="categories: found bolt; .* holds nut, tile"):
        mvtec(tmp_path, 8, categories=["bolt"])
    with pytest.raises(InputError, match="neither it nor its sub-folders hold train/good"):
        mvtec(tmp_path / "tile" / "test", 8)
    tile = tmp_path / "tile"
    mask = tile / "ground_truth" / "zap" / "000_mask.bmp"
    write(mask, np.zeros((36, 24), np.uint8))
    with pytest.raises(InputError, match="000_mask.bmp: 24 x 36 pixels, its picture has 36 x 24"):
        mvtec(tile, 8)
    mask.unlink()
    with pytest.raises(InputError, match="zap/000.JPG: has no mask, expected .*ground_truth/zap/000_mask.png"):
        mvtec(tile, 8)
    (tile / "test" / "bent").mkdir()
    with pytest.raises(InputError, match="bent: holds no pictures"):
        mvtec(tile, 8)
    (tile / "test" / "bent").rmdir()
    os.rename(tile / "ground_truth", tmp_path / "elsewhere")
    assert mvtec(tile, 8).masks is None  # type: ignore[union-attr]


def make_classes(root: Path, sizes: dict[str, int], below: str = "") -> None:
    """Pictures of one value each, their number in the class."""
    for name, count in sizes.items():
        for i in range(count):
            write(root / name / below / f"{i:03d}.png", np.full((6 + i, 9), i, np.uint8))


def values(rows: object) -> list[int]:
    return np.asarray(rows)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("layout", [("test", ""), ("val", "images")])
def test_class_folders_with_a_split(tmp_path: Path, layout: tuple[str, str]) -> None:
    test, below = layout
    make_classes(tmp_path / "pets" / "train", {"cat": 4, "dog": 5, "rat": 3}, below)
    make_classes(tmp_path / "pets" / test, {"cat": 2, "dog": 1, "rat": 2, "yak": 1}, below)
    data = class_folders(tmp_path / "pets", 5, normal_class="cat")
    assert data.name == "pets_normal_cat" and data.train.shape == (4, 5, 5, 3) and values(data.train) == [0, 1, 2, 3]
    assert data.groups is not None and data.groups.tolist() == ["cat", "cat", "dog", "rat", "rat", "yak"]
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 1] and values(data.test) == [0, 1, 0, 0, 1, 0]
    reverse = class_folders(tmp_path / "pets", 5, anomalous_class=["cat", "yak"], channels=1)
    assert reverse.train.shape == (8, 5, 5, 1) and reverse.labels.tolist() == [1, 1, 0, 0, 0, 1]
    (tmp_path / "list.txt").write_text("rat\n\ncat \nrat\n")
    listed = class_folders(tmp_path / "pets", 5, normal_class=0, classes_file=tmp_path / "list.txt")
    assert listed.name == "pets_normal_rat" and len(listed.train) == 3 and listed.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="class yak: no training rows"):
        class_folders(tmp_path / "pets", 5, anomalous_class="cat")
    with pytest.raises(InputError, match="normal_class: found 'cow'; .*allowed are cat, dog, rat, yak"):
        class_folders(tmp_path / "pets", 5, normal_class="cow")
    with pytest.raises(InputError, match="exactly one of normal_class .* and anomalous_class"):
        class_folders(tmp_path / "pets", 5)
    (tmp_path / "list.txt").write_text("rat\ncow\n")
    with pytest.raises(InputError, match="list.txt: class cow has no folder"):
        class_folders(tmp_path / "pets", 5, normal_class=0, classes_file=tmp_path / "list.txt")
    (tmp_path / "pets" / "train" / "emu").mkdir()
    with pytest.raises(InputError, match="train/emu: holds no pictures"):
        class_folders(tmp_path / "pets", 5, normal_class="cat")


def test_class_folders_without_a_split_train_on_the_first_half_of_the_normals(
    tmp_path: Path, warnings: list[str]
) -> None:
    make_classes(tmp_path, {"cat": 6, "dog": 4, "rat": 3})
    (tmp_path / ".cache").mkdir()
    data = class_folders(tmp_path, 5, normal_class=["cat", "dog"])
    assert values(data.train) == [0, 1, 2, 0, 1] and values(data.test) == [3, 4, 5, 2, 3, 0, 1, 2]
    assert data.labels.tolist() == [0] * 5 + [1] * 3
    shuffled = class_folders(tmp_path, 5, normal_class=["cat", "dog"], seed=1)
    assert values(shuffled.train) != values(data.train) and values(shuffled.test)[5:] == [0, 1, 2]
    assert sorted(values(shuffled.train)[:3] + values(shuffled.test)[:3]) == list(range(6))
    # The half is that of the readable files.
    truncated(tmp_path / "cat" / "000.png")
    assert values(class_folders(tmp_path, 5, normal_class="cat", on_error="skip").train) == [1, 2]
    assert len(warnings) == 1
    for file in (tmp_path / "rat").iterdir():
        file.write_text("foreign")
    with pytest.raises(InputError, match="rat: none of its 3 pictures can be read"):
        class_folders(tmp_path, 5, normal_class="cat", on_error="skip")


def test_a_plain_folder_lists_its_pictures_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a.jpg", "b/c/1.tiff", "b/notes.txt", ".a.png", "b/1.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [file.relative_to(tmp_path).as_posix() for file in picture_folder(tmp_path)]
    assert found == ["a.jpg", "b/1.webp", "b/2.PNG", "b/c/1.tiff"]
    for folder, message in [("folder.png", "holds no pictures"), ("absent", "no such folder"), ("a.jpg", "is a file")]:
        with pytest.raises(InputError, match=f"{folder}: {message}"):
            picture_folder(tmp_path / folder)


def test_npz_classes_select_either_way(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    arrays: dict[str, Any] = {
        "x_train": noise(20, 4, 4),
        "y_train": np.arange(20) % 3,
        "x_test": noise(9, 4, 4),
        "y_test": np.arange(9) % 3,
    }
    np.savez(file, **arrays, classes=np.array(["T-shirt/top", "cat", "dog"]))
    data = npz_classes(file, normal_class="cat")
    assert data.name == "set_normal_cat" and np.array_equal(np.asarray(data.train)[..., 0], arrays["x_train"][1::3])
    assert data.labels.tolist() == [1, 0, 1] * 3 and data.train.dtype == np.uint8 and data.test.shape == (9, 4, 4, 1)
    assert data.groups is not None and data.groups[:3].tolist() == ["T-shirt/top", "cat", "dog"]
    reverse = npz_classes(file, anomalous_class=1)
    assert len(reverse.train) == 13 and reverse.labels.tolist() == [0, 1, 0] * 3
    each = load({"name": "npz_classes_each", "path": str(file), "setting": "anomalous_class"})
    assert [one.name for one in each] == ["set_anomalous_T-shirt-top", "set_anomalous_cat", "set_anomalous_dog"]
    assert each[0].test is each[2].test or np.shares_memory(np.asarray(each[0].test), np.asarray(each[2].test))
    np.savez(file, **arrays, classes=np.array(["2", "0", "1"]))
    assert [one.name for one in npz_classes_each(file)] == ["set_normal_2", "set_normal_0", "set_normal_1"]
    np.savez(file, **arrays)
    assert [one.name for one in npz_classes_each(file, classes=["2"])] == ["set_normal_2"]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"x_train": arrays["x_train"] / 255.0}, "x_train is float64"),
        ({"y_test": arrays["y_test"][:-1]}, r"y_test is int64 \(8,\), expected int \[9\]"),
        ({"x_test": noise(9, 5, 4)}, r"x_train holds pictures \(4, 4, 1\), x_test \(5, 4, 1\)"),
        ({"y_train": arrays["y_train"] - 1}, "y spans -1 to 2"),
        ({"classes": np.array(["a", "b"])}, "expected labels 0 to K - 1 and K names"),
    ]
    for changed, message in bad:
        np.savez(file, **{**arrays, **changed})
        with pytest.raises(InputError, match=message) as caught:
            npz_classes(file, normal_class=0)
        assert str(caught.value).startswith(str(file))


def test_classes_are_selected_by_name_or_index_and_both_sides_must_be_there() -> None:
    names, train, test = ["a", "b", "c"], np.array([0, 1, 2, 0, 1]), np.array([2, 0, 1])
    rows, labels = select_classes(train, test, "a", None, names)
    assert rows.tolist() == [0, 3] and labels.tolist() == [1, 0, 1]
    ways: tuple[Any, ...] = ("b", 1, np.int64(1), ("b",), [1, "b"])
    for given in ways:
        rows, labels = select_classes(train, test, None, given, names)
        assert rows.tolist() == [0, 2, 3] and labels.tolist() == [0, 0, 1]
    for normal, anomalous, message in [
        (None, None, "exactly one"),
        ("a", "b", "exactly one"),
        ("x", None, "normal_class: found 'x'; allowed are a, b, c"),
        (None, 3, "anomalous_class: found 3, allowed are 0 to 2"),
        ((), None, "0 of 3 classes"),
        (None, names, "3 of 3 classes"),
    ]:
        with pytest.raises(InputError, match=message):
            select_classes(train, test, normal, anomalous, names)
    with pytest.raises(InputError, match="class c: no training rows"):
        select_classes(train[:2], test, "c", None, names)
    with pytest.raises(InputError, match="no normal rows among the 1 test rows"):
        select_classes(train, test[:1], "a", None, names)


def test_names_that_are_numbers_are_names_and_nothing_is_no_class() -> None:
    assert class_setting("", 1, ["1", "2", "10"]) == ("anomalous", [0])
    assert class_setting((10, 2), None, ["1", "2", "10"]) == ("normal", [1, 2])
    assert class_setting(1, None, ["cat", "dog"]) == ("normal", [1])
    with pytest.raises(InputError, match="config.data: give exactly one .*; the classes are a, b$"):
        class_setting("", None, ["a", "b"])
    with pytest.raises(InputError, match="the classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more$"):
        class_setting(None, None, [str(i) for i in range(12)])


def test_pictures_without_folders_are_normals_alone(tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path / "photos" / f"{i}.png", noise(9, 9))
    found = mvtec(tmp_path / "photos", 8)
    assert isinstance(found, Dataset) and found.name == "photos"
    assert found.train.shape == (9, 8, 8, 1) and found.test.shape == (0, 8, 8, 1) and found.masks is None
    # What lies in folders may be anomalous.
    write(tmp_path / "photos" / "bad" / "0.png", noise(9, 9))
    with pytest.raises(
        InputError, match="photos: neither it nor its sub-folders .* or pictures of normals and no folders"
    ):
        mvtec(tmp_path / "photos", 8)
    # Sub-folders of kinds, as `evaluate --data` takes them, have their normals in one.
    write(tmp_path / "photos" / "good" / "0.png", noise(9, 9))
    with pytest.raises(InputError, match="for these normals alone give .*photos/good$"):
        mvtec(tmp_path / "photos", 8)


def test_a_folder_of_pictures_is_no_folder_of_classes(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match=f"{tmp_path}: holds no folders, expected one of pictures for each class"):
        class_folders(tmp_path, 4, normal_class="ok")


def test_pictures_behind_links_are_read_once(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    for name in ("set/good/0.png", "set/hole/0.png", "elsewhere/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, pixels)
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set" / "hole")
    (tmp_path / "set" / "hole" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "scratch").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a-link").symlink_to(tmp_path / "set" / "deep" / "below")
    (tmp_path / "set" / "out").symlink_to(tmp_path)
    (tmp_path / "set" / "deep" / "below").mkdir(parents=True)
    write(tmp_path / "set" / "deep" / "below" / "0.png", pixels)
    found, y = labelled_folder(tmp_path / "set")
    names = [file.relative_to(tmp_path / "set").as_posix() for file in found]
    assert names == ["deep/below/0.png", "good/0.png", "hole/0.png", "scratch/a.png"]
    assert y.tolist() == [1, 0, 1, 1]


def test_labels_are_those_of_the_sub_folders(tmp_path: Path) -> None:
    for name in ("crack/deep/a.png", "good/a.png", "scratch/b.png", "loose.png", "good/._a.png"):
        write(tmp_path / name, noise(1, 5, 4)[0])
    files, labels = labelled_folder(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in files] == ["crack/deep/a.png", "good/a.png", "scratch/b.png"]
    assert labels.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="needs pictures in a sub-folder named good, normal, 0"):
        labelled_folder(tmp_path / "crack")


def test_the_half_that_trains_is_drawn_by_seed() -> None:
    files = {0: [Path(str(i)) for i in range(20)]}
    one, again, two = (folders._halved(files, [0], seed)[0][0] for seed in (1, 1, 2))
    assert one == again and set(one) != set(two)


def test_good_may_be_written_large(tmp_path: Path) -> None:
    for kind in ("Good", "hole"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / kind / "a.png")
    assert labelled_folder(tmp_path)[1].tolist() == [0, 1]
