"""Image folders, CIFAR-10 (torchvision and JPEG), SVHN and augmentation. No network, and never the user's cache."""

import hashlib
import io
import logging
import os
import pickle
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frl_repro.basics.errors import UserError
from frl_repro.data import augment, cifar10_jpeg, image_folder, load_dataset, pictures, torchvision_sets
from frl_repro.data.augment import AUGMENTATIONS, shift_and_flip
from frl_repro.data.cifar10_jpeg import CLASS_NAMES, load_cifar10_jpeg
from frl_repro.data.fetch import _first_address
from frl_repro.data.image_folder import load_image_folder
from frl_repro.data.splits import split_train_validation
from frl_repro.data.torchvision_sets import load_torchvision


@dataclass(frozen=True)
class Config:
    name: str
    root: str | None = None
    download: bool = False
    cache_dir: str | None = None
    image_size: int | None = None
    num_channels: int | None = None
    validation_fraction: float = 0.0
    selection_fraction: float = 0.0
    imbalance: str = "none"
    imbalance_ratio: float | None = None
    split_seed: int = 0
    num_train: int | None = None
    num_test: int | None = None


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "cache"


def pixels(seed, shape=(10, 12, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path) if mode else Image.fromarray(array).save(path)


def flip_last_byte(path: Path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def make_folder(root: Path, *, classes=("b", "a", "c"), num={"train": 3, "test": 2}, shape=(10, 12, 3), suffix="png"):  # noqa: B006
    for split, count in num.items():
        for place, name in enumerate(classes):
            for n in range(count):
                save(root / split / name / f"{n}.{suffix}", pixels([len(split), place, n], shape))
    return root


def load(root, cache, *, image_size=None, num_channels=None):
    return load_image_folder(root, image_size=image_size, num_channels=num_channels, cache_dir=cache)


# Image folders


@pytest.mark.parametrize("shape", [(10, 12, 3), (9, 9)])
def test_a_folder_becomes_tensors_sorted_by_class_and_file(tmp_path, cache, shape):
    root = make_folder(tmp_path / "x", shape=shape)
    (root / "train" / ".DS_Store").write_text("")
    (root / "train" / "a" / "Thumbs.db").write_text("")
    class_names, train, test = load(root, cache)
    assert class_names == ("a", "b", "c")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for split, part, count in (("train", train, 3), ("test", test, 2)):
        expected = [pixels([len(split), place, n], shape) for place in (1, 0, 2) for n in range(count)]
        stacked = np.stack([array if array.ndim == 3 else array[:, :, None] for array in expected])
        assert np.array_equal(part.images.numpy(), stacked.transpose(0, 3, 1, 2))


def test_image_size_resizes_each_as_pil_does(tmp_path, cache):
    root = make_folder(tmp_path / "x")
    save(root / "train" / "a" / "0.png", pixels(5, (30, 11, 3)))
    _, train, _ = load(root, cache, image_size=16)
    expected = Image.fromarray(pixels(5, (30, 11, 3))).resize((16, 16), Image.Resampling.BILINEAR)
    assert train.images.shape[1:] == (3, 16, 16)
    assert np.array_equal(train.images[0].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_num_channels_converts_grey_colour_and_transparent_ones(tmp_path, cache, num_channels, mode):
    root = make_folder(tmp_path / "x")
    save(root / "train" / "a" / "0.png", pixels(5, (10, 12)))
    save(root / "train" / "a" / "1.png", pixels(6, (10, 12, 4)))
    _, train, _ = load(root, cache, num_channels=num_channels)
    for place, shape in ((0, (10, 12)), (1, (10, 12, 4))):
        expected = np.asarray(Image.fromarray(pixels(5 + place, shape)).convert(mode)).reshape(10, 12, num_channels)
        assert np.array_equal(train.images[place].permute(1, 2, 0).numpy(), expected)


def without(*path):
    def remove(root):
        target = root.joinpath(*path)
        for file in sorted(target.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        target.rmdir() if target.is_dir() else target.unlink()

    return remove


def emptied(*path):
    def empty(root):
        without(*path)(root)
        root.joinpath(*path).mkdir()

    return empty


def truncated(root):
    save(root / "train" / "b" / "1.jpg", pixels(0, (64, 64, 3)))
    (root / "train" / "b" / "1.png").unlink()
    path = root / "train" / "b" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-900])


WRONG = {
    "no root": (without("."), r"dataset\.root=\S*x does not exist: expected are <root>/train/<class>/\*"),
    "no test": (without("test"), r"dataset\.root=\S*x has no folder test: expected are"),
    "test class missing": (without("test", "b"), r"x/test has no class 'b', which \S*x/train has"),
    "train class missing": (without("train", "c"), r"x/train has no class 'c', which \S*x/test has"),
    "empty class": (emptied("train", "b"), r"x/train/b holds no picture: every class needs some"),
    "empty test class": (emptied("test", "c"), r"x/test/c holds no picture"),
    "size": (
        lambda root: save(root / "test" / "b" / "1.png", pixels(0, (10, 13, 3))),
        r"^test/b/1\.png has 10x13 pixels, train/a/0\.png has 10x12: give dataset\.image_size=SIDE",
    ),
    "grey": (
        lambda root: save(root / "train" / "c" / "2.png", pixels(0, (10, 12))),
        r"^train/c/2\.png is grey, train/a/0\.png is in colour: convert one, or give dataset\.num_channels=3",
    ),
    "transparent": (
        lambda root: save(root / "train" / "a" / "1.png", pixels(0, (10, 12, 4))),
        r"^train/a/1\.png has transparency: convert it, or give dataset\.num_channels=3",
    ),
    "16 bits": (
        lambda root: save(root / "train" / "a" / "1.png", np.zeros((10, 12), dtype=np.uint16)),
        r"^train/a/1\.png has pixels of mode I;16, not of 8 bits",
    ),
    "small": (
        lambda root: save(root / "train" / "a" / "0.png", pixels(0, (7, 12, 3))),
        r"^train/a/0\.png has 7x12 pixels, at least 8x8 are needed",
    ),
    "truncated": (truncated, r"^train/b/1\.jpg is no picture that can be read \(image file is truncated"),
    "text": (
        lambda root: (root / "train" / "b" / "notes.txt").write_text("no picture"),
        r"^train/b/notes\.txt is no picture that can be read \(cannot identify image file\): replace or remove it",
    ),
    "empty file": (
        lambda root: (root / "test" / "a" / "0.png").write_bytes(b""),
        r"^test/a/0\.png is no picture that can be read",
    ),
    "nested": (
        lambda root: (root / "train" / "a" / "more").mkdir(),
        r"x/train/a/more is no file: a class folder holds",
    ),
    "loose": (lambda root: (root / "train" / "x.png").write_bytes(b""), r"x/train/x\.png lies among the class folders"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_each_wrong_folder_is_one_line_that_names_it_and_nothing_is_cached(tmp_path, cache, kind):
    root = make_folder(tmp_path / "x")
    spoil, message = WRONG[kind]
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load(root, cache)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)
    assert not cache.exists()


def test_val_stands_for_test_where_there_is_none_and_is_passed_over_with_a_line_where_there_is(tmp_path, cache, caplog):
    root = make_folder(tmp_path / "x")
    expected = load(root, cache)
    (root / "test").rename(root / "val")
    found = load(root, cache)
    assert torch.equal(found[2].images, expected[2].images)
    assert torch.equal(found[2].labels, expected[2].labels)
    make_folder(root, num={"test": 1})
    with caplog.at_level(logging.WARNING):
        assert len(load(root, cache)[2]) == 3
    assert "x/val is not read: validation images are dataset.validation_fraction of train" in caplog.text


def test_of_class_folders_alone_a_fifth_of_each_class_is_drawn_for_testing_by_the_split_seed(tmp_path, cache):
    root = make_folder(tmp_path / "x", num={"train": 10}) / "train"
    names, train, test = load(root, cache)
    assert names == ("a", "b", "c")
    assert torch.bincount(train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(test.labels).tolist() == [2, 2, 2]
    everything = {image.numpy().tobytes() for part in (train, test) for image in part.images}
    assert everything == {pixels([5, place, n]).transpose(2, 0, 1).tobytes() for place in range(3) for n in range(10)}
    draws = {
        seed: load_dataset(Config("image_folder", str(root), cache_dir=str(cache), split_seed=seed)) for seed in (0, 1)
    }
    assert torch.equal(draws[0].test.images, test.images)
    assert not torch.equal(draws[1].test.images, test.images)
    with pytest.raises(UserError, match=r"dataset\.split_seed has no effect"):
        load_dataset(Config("image_folder", str(make_folder(tmp_path / "y")), cache_dir=str(cache), split_seed=1))


def test_a_class_of_one_picture_cannot_be_drawn_from(tmp_path, cache):
    root = make_folder(tmp_path / "x", num={"train": 1}) / "train"
    with pytest.raises(UserError, match=r"x/train/a holds one picture, at least 2 are needed: one to train, one to"):
        load(root, cache)


def test_class_names_are_the_same_in_either_normal_form_of_unicode(tmp_path, cache):
    root = make_folder(tmp_path / "x", classes=("cafe\u0301", "thé"), num={"train": 2})
    make_folder(root, classes=("café", "the\u0301"), num={"test": 2})
    names, train, test = load(root, cache)
    assert names == ("café", "thé")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 1, 1]
    make_folder(root, classes=("café",), num={"train": 1})
    with pytest.raises(UserError, match=r"x/train has two class folders 'café', spelt with different Unicode"):
        load(root, cache)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pictures_are_turned_as_their_camera_noted(tmp_path, cache, suffix):
    root = make_folder(tmp_path / "x", shape=(12, 10, 3))
    array = np.zeros((10, 12, 3), dtype=np.uint8)
    array[:3] = 255  # bright at the top as it is stored
    note = Image.Exif()
    note[0x0112] = 6  # the sensor's top is the right side
    (root / "train" / "a" / "0.png").unlink()
    Image.fromarray(array).save(root / "train" / "a" / f"0.{suffix}", exif=note)
    image = load(root, cache)[1].images[0].float().mean(0)
    assert image.shape == (12, 10)
    assert image[:, 8:].min() > 200
    assert image[:, :5].max() < 50


def animated(suffix):
    def save_several(root):
        frames = [Image.fromarray(pixels(n)) for n in range(3)]
        frames[0].save(root / "train" / "a" / f"9.{suffix}", save_all=True, append_images=frames[1:])

    return save_several


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_and_documents_of_pages_are_refused_by_name(tmp_path, cache, suffix):
    root = make_folder(tmp_path / "x")
    animated(suffix)(root)
    with pytest.raises(UserError, match=rf"^train/a/9\.{suffix} holds 3 pictures \(an animation, or pages\): keep one"):
        load(root, cache)


def test_a_preview_after_a_cameras_picture_is_no_second_picture(tmp_path, cache):
    root = make_folder(tmp_path / "x")
    frames = [Image.fromarray(pixels(n)) for n in range(2)]
    frames[0].save(root / "train" / "a" / "9.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert len(load(root, cache)[1]) == 10


def test_huge_pictures_are_read_without_a_word_and_beyond_pillows_limit_refused(tmp_path, cache, monkeypatch, recwarn):
    root = make_folder(tmp_path / "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above it, and refuses above twice as many
    assert len(load(root, cache)[1]) == 9
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(
        UserError, match=r"^train/a/0\.png is too large: pictures of more than 0 million pixels are not"
    ):
        load(root, tmp_path / "other")


def test_what_is_no_documented_format_is_never_opened(tmp_path, cache):
    """PostScript called .png: Pillow would run Ghostscript for it."""
    root = make_folder(tmp_path / "x")
    (root / "train" / "a" / "9.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 10\nshowpage\n")
    with pytest.raises(UserError, match=r"^train/a/9\.png is no picture .*\(formats: PNG, JPEG, JPEG 2000, WebP, TIFF"):
        load(root, cache)
    documented = (Path(__file__).parents[1] / "docs" / "own_images.md").read_text()
    assert pictures._FORMAT_NAMES in " ".join(documented.split())


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "jp2", "gif", "webp", "tif", "jpg", "png"])
def test_every_documented_format_is_read(tmp_path, cache, suffix):
    _, train, _ = load(make_folder(tmp_path / "x", suffix=suffix), cache)
    assert train.images.shape == (9, 3, 10, 12)


def test_a_file_and_a_single_class_are_no_data_set(tmp_path, cache):
    with pytest.raises(UserError, match="has 1 class folders, at least 2 are needed"):
        load(make_folder(tmp_path / "x", classes=("a",)), cache)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is no folder"):
        load(tmp_path / "file", cache)


def test_more_images_than_memory_holds_are_refused_with_their_size(monkeypatch, tmp_path, cache):
    monkeypatch.setattr(pictures, "_physical_memory", lambda: 1000.0)
    message = r"15 images of 10x12 pixels take 0\.0 GiB, more than .*give a smaller dataset\.image_size"
    with pytest.raises(UserError, match=message):
        load(make_folder(tmp_path / "x"), cache)


@pytest.fixture
def decoded(monkeypatch):
    """Gains an entry whenever pictures are decoded."""
    calls, decode = [], image_folder.decode_all
    monkeypatch.setattr(image_folder, "decode_all", lambda *a: calls.append(1) or decode(*a))
    return calls


def test_a_folder_is_decoded_once_until_it_changes(tmp_path, cache, decoded, caplog):
    root = make_folder(tmp_path / "x")
    caplog.set_level(logging.INFO)
    first, second = load(root, cache), load(root, cache)
    assert len(decoded) == 1
    assert torch.equal(first[1].images, second[1].images)
    assert torch.equal(first[2].labels, second[2].labels)
    load(root, cache, image_size=8)
    assert len(decoded) == 2
    load(root, cache)
    assert len(decoded) == 2  # each size has a file of its own
    assert "cache" not in caplog.text
    save(root / "test" / "c" / "1.png", pixels(9))
    changed = load(root, cache)
    assert len(decoded) == 3
    assert np.array_equal(changed[2].images[-1].permute(1, 2, 0).numpy(), pixels(9))
    assert len(list((cache / "frl_repro").iterdir())) == 2
    assert "is of other files or settings and is made anew" in caplog.text
    assert "damaged" not in caplog.text


def stamp(root):
    """Give every file one time, as unzip does."""
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def test_pictures_of_one_name_size_and_time_are_told_apart(tmp_path, cache):
    """Class folders that change names: every file keeps its name, size and time."""
    root, levels = tmp_path / "x", {"dark": 50, "light": 200}
    for split in ("train", "test"):
        for name, level in levels.items():
            save(root / split / name / "0.bmp", np.full((8, 8), level, dtype=np.uint8))
    stamp(root)
    names, train, _ = load(root, cache)
    assert [(name, int(image.float().mean())) for name, image in zip(names, train.images, strict=True)] == [
        ("dark", 50),
        ("light", 200),
    ]
    for split in ("train", "test"):
        (root / split / "dark").rename(root / split / "x")
        (root / split / "light").rename(root / split / "dark")
        (root / split / "x").rename(root / split / "light")
    stamp(root)
    names, train, test = load(root, cache)
    assert names == ("dark", "light")
    for part in (train, test):
        assert part.images.float().mean((1, 2, 3)).tolist() == [200, 50]


def test_names_and_times_of_files_alone_make_nothing_new(tmp_path, cache, decoded):
    root = make_folder(tmp_path / "x")
    load(root, cache)
    stamp(root)
    (root / "train" / "a" / "2.png").rename(root / "train" / "a" / "3.png")
    load(root, cache)
    assert len(decoded) == 1


def test_a_picture_that_changes_while_it_is_decoded_is_cached_as_what_it_was(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "x")
    path, decode = root / "train" / "a" / "0.png", image_folder.decode_all

    def change_then_decode(*arguments):
        save(path, pixels(9))
        return decode(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(image_folder, "decode_all", change_then_decode)
        before = path.read_bytes()
        load(root, cache)
    for content, expected in ((before, pixels([5, 1, 0])), (None, pixels(9))):
        if content is not None:
            path.write_bytes(content)
        else:
            save(path, pixels(9))
        _, train, _ = load(root, cache)
        assert np.array_equal(train.images[0].permute(1, 2, 0).numpy(), expected)


def test_a_damaged_cache_of_a_folder_is_made_again_with_a_warning(tmp_path, cache, caplog):
    root = make_folder(tmp_path / "x")
    _, train, _ = load(root, cache)
    (file,) = (cache / "frl_repro").iterdir()
    content = file.read_bytes()
    flip_last_byte(file)
    with caplog.at_level(logging.WARNING):
        _, again, _ = load(root, cache)
    assert "is damaged (wrong sha256) and is made again" in caplog.text
    assert torch.equal(train.images, again.images)
    assert file.read_bytes() == content


def test_order_and_errors_do_not_depend_on_how_many_are_decoded_ahead(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "x", num={"train": 20, "test": 1})
    _, expected, _ = load(root, cache)
    for ahead in (1, 3):
        monkeypatch.setattr(pictures, "_NUM_AHEAD", ahead)
        _, found, _ = load(root, tmp_path / f"cache{ahead}")
        assert torch.equal(found.images, expected.images)


def test_a_folder_is_a_data_set_with_validation_and_subsets(tmp_path, cache):
    root = make_folder(tmp_path / "x", num={"train": 10, "test": 4})
    config = Config("image_folder", str(root), cache_dir=str(cache), validation_fraction=0.2, num_test=6)
    dataset = load_dataset(config)
    assert (dataset.name, dataset.class_names, dataset.num_classes) == ("image_folder", ("a", "b", "c"), 3)
    assert torch.bincount(dataset.train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(dataset.validation.labels).tolist() == [2, 2, 2]
    assert torch.bincount(dataset.test.labels).tolist() == [2, 2, 2]


# CIFAR-10 as JPEG


@pytest.fixture
def jpeg(tmp_path, monkeypatch, cache):
    """A small folder and archive that pass for the data set."""
    folder = make_folder(
        tmp_path / "jpeg", classes=CLASS_NAMES, num={"train": 3, "test": 2}, shape=(32, 32, 3), suffix="jpg"
    )
    archive = tmp_path / "small.tar.xz"
    with tarfile.open(archive, "w:xz") as opened:
        opened.add(folder / "train", "train")
        opened.add(folder / "test", "test")
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}
    monkeypatch.setattr(cifar10_jpeg, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10_jpeg, "CONTENT_SHA256", cifar10_jpeg._digest(contents))
    monkeypatch.setattr(cifar10_jpeg, "NUM_FILES", {"train": 3, "test": 2})
    monkeypatch.delenv(cifar10_jpeg.ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder, archive


def test_folder_and_archive_give_the_same_images_and_the_cache_does_alone(jpeg, cache, tmp_path):
    folder, archive = jpeg
    train, test = load_cifar10_jpeg(root=archive, cache_dir=cache)
    assert train.labels.tolist() == [k for k in range(10) for _ in range(3)]
    with Image.open(folder / "train" / "bird" / "1.jpg") as image:
        assert np.array_equal(train.images[7].permute(1, 2, 0).numpy(), np.asarray(image))
    for source, place in ((folder, tmp_path / "other"), (None, cache)):
        others = load_cifar10_jpeg(root=source, cache_dir=place)
        for one, other in zip((train, test), others, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("place", ["variable", "folder", "archive"])
def test_usual_places(jpeg, cache, monkeypatch, tmp_path, place):
    folder, archive = jpeg
    (tmp_path / "data").mkdir()
    if place == "variable":
        monkeypatch.setenv(cifar10_jpeg.ROOT_VARIABLE, str(archive))
    elif place == "folder":
        folder.rename(tmp_path / "data" / "cifar10_jpeg")
    else:
        archive.rename(tmp_path / "data" / "cifar10-jpeg.tar.xz")
    config = Config("cifar10_jpeg", cache_dir=str(cache))
    dataset = load_dataset(config)
    assert (dataset.name, dataset.class_names) == ("cifar10_jpeg", CLASS_NAMES)
    assert dataset.channel_mean == (0.4914, 0.4822, 0.4465)
    assert len(dataset.train) == 30


def test_wrong_jpeg_sources_are_one_line_each_and_never_cached(jpeg, cache, tmp_path):
    folder, archive = jpeg
    found = {
        None: r"^CIFAR-10 as JPEG not found: get them \(docs/data\.md says .*=FILE .* set FRL_CIFAR10_JPEG to",
        tmp_path / "nowhere": r"nowhere does not exist: get them .* then give dataset\.root=FILE",
    }
    other = tmp_path / "other.tar.xz"
    other.write_bytes(archive.read_bytes() + b"\0")
    found[other] = r"other\.tar\.xz is damaged or another file \(expected sha256 \w{12}, got \w{12} of \d+ bytes\)"
    for root, message in found.items():
        with pytest.raises(UserError, match=message) as caught:
            load_cifar10_jpeg(root=root, cache_dir=cache)
        assert "\n" not in str(caught.value)
    image = folder / "test" / "cat" / "1.jpg"
    flip_last_byte(image)
    with pytest.raises(UserError, match=r"jpeg does not hold the files of cifar10-jpeg\.tar\.xz"):
        load_cifar10_jpeg(root=folder, cache_dir=cache)
    image.unlink()
    with pytest.raises(UserError, match=r"jpeg/test/cat holds 1 files, expected are 2"):
        load_cifar10_jpeg(root=folder, cache_dir=cache)
    (folder / "test" / "cat").rename(folder / "test" / "lion")
    (folder / "train" / "cat").rename(folder / "train" / "lion")
    with pytest.raises(
        UserError, match=r"is not CIFAR-10: it has other classes \(cat, lion\); try dataset=image_folder"
    ):
        load_cifar10_jpeg(root=folder, cache_dir=cache)
    assert not cache.exists()


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get(cifar10_jpeg.ROOT_VARIABLE), reason="needs the archive, or its folder")
def test_real_cifar10_jpeg(tmp_path):
    train, test = load_cifar10_jpeg(root=Path(os.environ[cifar10_jpeg.ROOT_VARIABLE]), cache_dir=tmp_path)
    assert train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [5_000] * 10
    assert torch.bincount(test.labels).tolist() == [1_000] * 10
    channels = train.images[::20].double().transpose(0, 1).flatten(1) / 255
    # Those of CIFAR-10 to two digits: JPEG changes pixels, not their distribution.
    assert channels.mean(1).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)
    assert channels.std(1).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.005)


# CIFAR-10 and SVHN through torchvision


@pytest.fixture
def torchvision_files(monkeypatch, tmp_path, cache):
    """Small files in torchvision's layouts whose checksums torchvision is told to expect."""
    from scipy.io import savemat
    from torchvision.datasets import CIFAR10, SVHN

    root, rng = tmp_path / "root", np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    arrays = {}

    def put(path, content):
        path.write_bytes(content)
        return hashlib.md5(content).hexdigest()

    sums = {}
    for name in ["data_batch_1", "data_batch_2", "test_batch"]:
        arrays[name] = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        sums[name] = put(folder / name, pickle.dumps({"data": arrays[name], "labels": [n % 10 for n in range(20)]}))
    meta = put(folder / "batches.meta", pickle.dumps({"label_names": list(torchvision_sets.CIFAR10.class_names)}))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        opened.add(folder, CIFAR10.base_folder)
    archive = tmp_path / "packed" / CIFAR10.filename
    archive.parent.mkdir()
    monkeypatch.setattr(CIFAR10, "tgz_md5", put(archive, packed.getvalue()))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    split_list = {}
    for name in ("train", "test"):
        arrays[name] = rng.integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
        path = root / f"{name}_32x32.mat"
        savemat(path, {"X": arrays[name], "y": np.arange(1, 11).reshape(-1, 1)})
        split_list[name] = ["http://none", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    return root, archive.parent, arrays


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_from_torchvisions_files(torchvision_files, cache, packed):
    root, archive_folder, arrays = torchvision_files
    source = archive_folder if packed else root
    before = sorted(source.rglob("*"))
    dataset = load_dataset(Config("cifar10", str(source), cache_dir=str(cache)))
    expected = np.concatenate([arrays["data_batch_1"], arrays["data_batch_2"]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.train.images.numpy(), expected)
    assert dataset.train.labels.tolist() == [n % 10 for n in range(20)] * 2
    assert np.array_equal(dataset.test.images.numpy(), arrays["test_batch"].reshape(-1, 3, 32, 32))
    assert sorted(source.rglob("*")) == before
    cached = load_dataset(Config("cifar10", cache_dir=str(cache)))
    assert torch.equal(cached.train.images, dataset.train.images)
    assert cached.class_names == dataset.class_names == CLASS_NAMES


def test_svhn_from_torchvisions_files(torchvision_files, cache):
    root, _, arrays = torchvision_files
    dataset = load_dataset(Config("svhn", str(root), cache_dir=str(cache)))
    assert dataset.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # the files call the digit 0 ten
    assert np.array_equal(dataset.test.images.numpy(), arrays["test"].transpose(3, 2, 0, 1))
    assert dataset.class_names == tuple("0123456789")


@pytest.mark.parametrize("damage", ["flipped", "missing", "packed"])
def test_damaged_cifar10_is_refused_by_name_and_never_cached(torchvision_files, cache, damage):
    root, archive_folder, _ = torchvision_files
    path = root / "cifar-10-batches-py" / "data_batch_2"
    if damage == "packed":
        root = archive_folder
        (path,) = root.iterdir()
    if damage == "missing":
        path.unlink()
    else:
        flip_last_byte(path)
    message = rf"dataset\.root={re.escape(str(root))} lacks cifar-10-batches-py .*, or holds damaged ones"
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(Config("cifar10", str(root), cache_dir=str(cache)))
    assert "\n" not in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize("download", [False, True])
def test_one_line_names_every_way_to_cifar10_when_there_is_none(cache, monkeypatch, download):
    def unreachable(*_, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr("frl_repro.data.fetch.urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match=r"^CIFAR-10 not found") as caught:
        load_dataset(Config("cifar10", cache_dir=str(cache), download=download))
    message = str(caught.value)
    assert "\n" not in message
    for way in ("dataset.root", "dataset=cifar10_jpeg with its archive", "docs/data.md", "dataset=synthetic"):
        assert way in message
    assert ("dataset.download=true" in message) != download  # advice that was followed already does not help
    assert ("host out of reach: Name or service not known" in message) == download


def test_root_that_is_no_folder_for_torchvisions_files(cache, tmp_path):
    arguments = {"download": False, "cache_dir": cache}
    with pytest.raises(UserError, match=r"nowhere does not exist: correct it, or set dataset\.download=true"):
        load_torchvision(torchvision_sets.SVHN, root=tmp_path / "nowhere", **arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is no folder: give the folder that holds train_32x32\.mat and"):
        load_torchvision(torchvision_sets.SVHN, root=tmp_path / "file", **arguments)


def test_a_download_goes_into_root_or_nowhere_but_the_cache(torchvision_files, cache, monkeypatch, tmp_path):
    root, _, _ = torchvision_files
    monkeypatch.setattr("frl_repro.data.fetch._first_address", lambda *_: None)
    asked = []

    def read(folder, download):
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        asked.append(folder)
        return torchvision_sets._read_svhn(root, False)

    source = torchvision_sets.Source(**{**vars(torchvision_sets.SVHN), "read": read})
    given = tmp_path / "new"
    given.mkdir()
    train, _ = load_torchvision(source, root=given, download=True, cache_dir=cache)
    load_torchvision(source, root=None, download=True, cache_dir=tmp_path / "second")
    assert asked[0] == given
    assert not asked[1].exists()
    assert len(train) == 10


@pytest.mark.parametrize("source", [torchvision_sets.CIFAR10, torchvision_sets.SVHN])
def test_checksums_and_addresses_are_the_installed_torchvisions(source):
    from torchvision import datasets

    address = _first_address(source.module, source.kind)
    assert address is not None
    assert address.startswith("http")
    kind = getattr(datasets, source.kind)
    sums = [kind.tgz_md5] if source.kind == "CIFAR10" else [kind.split_list[name][2] for name in ("train", "test")]
    assert all(md5 in source.content for md5 in sums)


def test_six_percent_of_cifar10_are_the_papers_300_of_each_class():
    labels = torch.arange(50_000) % 10
    train, validation = split_train_validation(labels, 0.06, 0)
    assert torch.bincount(labels[train]).tolist() == [4_700] * 10
    assert torch.bincount(labels[validation]).tolist() == [300] * 10


# Augmentation


def slow_augmentation(images, generator, max_shift, flip_probability):
    """One image at a time: pad, cut, mirror."""
    edges = torch.randint(2 * max_shift + 1, (2, len(images)), generator=generator)
    is_mirrored = torch.rand(len(images), generator=generator) < flip_probability
    _, channels, height, width = images.shape
    result = []
    for n, image in enumerate(images):
        canvas = torch.zeros(channels, height + 2 * max_shift, width + 2 * max_shift, dtype=images.dtype)
        canvas[:, max_shift : max_shift + height, max_shift : max_shift + width] = image
        top, left = edges[:, n].tolist()
        cut = canvas[:, top : top + height, left : left + width]
        result.append(cut.flip(-1) if is_mirrored[n] else cut)
    return torch.stack(result)


def some_images(num_runs, num, channels=3, height=9, width=12, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (num_runs, num, channels, height, width), generator=generator)
    return images.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("max_shift", "flip_probability"), [(4, 0.5), (4, 0.0), (0, 1.0), (2, 0.3), (0, 0.0)])
def test_augmentation_equals_a_loop_over_images_and_each_run_alone(dtype, max_shift, flip_probability):
    images = some_images(3, 20, dtype=dtype)
    before = images.clone()
    seeds = (7, 8, 9)
    settings = {"max_shift": max_shift, "flip_probability": flip_probability}
    found = shift_and_flip(images, [torch.Generator().manual_seed(seed) for seed in seeds], **settings)
    assert found.dtype == dtype
    assert torch.equal(images, before)
    for r, seed in enumerate(seeds):
        slow = slow_augmentation(images[r], torch.Generator().manual_seed(seed), max_shift, flip_probability)
        assert torch.equal(found[r], slow)
        alone = shift_and_flip(images[r : r + 1], [torch.Generator().manual_seed(seed)], **settings)
        assert torch.equal(alone[0], slow)


def test_every_shift_and_half_of_the_flips_come():
    images = torch.zeros(1, 20_000, 1, 9, 9, dtype=torch.uint8)
    images[..., 4, 4] = 1
    images[..., 4, 0] = 2  # tells the sides apart
    state = torch.get_rng_state()
    found = AUGMENTATIONS["crop_flip"](images, [torch.Generator().manual_seed(0)])[0, :, 0]
    assert torch.equal(torch.get_rng_state(), state)
    rows, columns = (found == 1).nonzero()[:, 1:].unbind(1)
    counts = torch.bincount(9 * rows + columns, minlength=81)
    assert len(rows) == 20_000  # the middle is never cut off
    assert counts.min() > 20_000 / 81 * 0.7
    assert counts.max() < 20_000 / 81 * 1.3
    sees_mark = (found == 2).flatten(1).any(1)
    marks = (found[sees_mark] == 2).nonzero()[:, 2]
    is_mirrored = marks > columns[sees_mark]
    assert float(is_mirrored.float().mean()) == pytest.approx(0.5, abs=0.02)
    plain = AUGMENTATIONS["crop"](images, [torch.Generator().manual_seed(0)])[0, :, 0]
    sees_mark = (plain == 2).flatten(1).any(1)
    assert ((plain[sees_mark] == 2).nonzero()[:, 2] < (plain[sees_mark] == 1).nonzero()[:, 2]).all()


def test_none_changes_nothing_and_draws_nothing():
    images, generator = some_images(1, 5), torch.Generator().manual_seed(3)
    state = generator.get_state()
    assert AUGMENTATIONS["none"](images, [generator]) is images
    assert torch.equal(generator.get_state(), state)
    assert set(AUGMENTATIONS) == {"none", "crop", "crop_flip"}
    assert augment.MAX_SHIFT == 4


@pytest.mark.gpu
def test_augmentation_on_the_gpu_stays_there():
    images = some_images(2, 6).cuda()
    generators = [torch.Generator("cuda").manual_seed(seed) for seed in range(2)]
    found = AUGMENTATIONS["crop_flip"](images, generators)
    assert found.device == images.device
    assert found.shape == images.shape


def test_names_that_are_no_utf8_are_read_for_pictures_and_refused_for_classes(tmp_path, cache):
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            save(tmp_path / odd / split / name / f"{odd}.png", pixels(number))
    settings = {"image_size": None, "num_channels": None, "cache_dir": cache}
    names, train, _ = load_image_folder(tmp_path / odd, **settings)
    assert (names, len(train.labels)) == (("a", "b"), 2)
    for split in ("train", "test"):
        (tmp_path / odd / split / "b").rename(tmp_path / odd / split / odd)
    with pytest.raises(UserError, match=f"train/{odd}: the folder's name is no UTF-8 text: rename it"):
        load_image_folder(tmp_path / odd, **settings)
