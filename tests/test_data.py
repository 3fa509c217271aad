"""Data sets: sources, content checks, cache, resize and the value types. No network, and never the user's cache."""

import dataclasses
import gzip
import hashlib
import logging
import math
import os
import socket
import stat
import sys
import urllib.error
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from frl_repro.basics import atomic
from frl_repro.basics.errors import UserError
from frl_repro.data import Dataset, Split, batch_to_float, fashion_mnist, fetch, load_dataset
from frl_repro.data.cache import cache_folder, load_tensors, store_tensors
from frl_repro.data.fashion_mnist import (
    KNOWN_CONTENT,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    load_fashion_mnist,
    resize_bilinear,
)
from frl_repro.data.idx import KnownContent, parse_idx
from frl_repro.data.synthetic import load_synthetic

NUM_TRAIN, NUM_TEST = 40, 20


@dataclass(frozen=True)
class FashionMnistConfig:
    name: str = "fashion_mnist"
    root: str | None = None
    download: bool = False
    cache_dir: str | None = None
    validation_fraction: float = 0.25
    selection_fraction: float = 0.0
    imbalance: str = "none"
    imbalance_ratio: float | None = None
    split_seed: int = 0
    num_train: int | None = None
    num_test: int | None = None


@dataclass(frozen=True)
class SyntheticConfig:
    name: str = "synthetic"
    num_classes: int = 5
    num_train: int = 50
    num_test: int = 20
    validation_fraction: float = 0.2
    selection_fraction: float = 0.0
    imbalance: str = "none"
    imbalance_ratio: float | None = None
    split_seed: int = 0


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def files(monkeypatch, tmp_path) -> dict[str, bytes]:
    """Content of four small files that pass for Fashion-MNIST; the system copy goes to ``system``."""
    rng = np.random.default_rng(0)
    contents = {
        TRAIN_IMAGES: idx_bytes(rng.integers(0, 256, (NUM_TRAIN, 28, 28), dtype=np.uint8)),
        TRAIN_LABELS: idx_bytes(np.arange(NUM_TRAIN, dtype=np.uint8) % 10),
        TEST_IMAGES: idx_bytes(rng.integers(0, 256, (NUM_TEST, 28, 28), dtype=np.uint8)),
        TEST_LABELS: idx_bytes(np.arange(NUM_TEST, dtype=np.uint8) % 10),
    }
    for name, content in contents.items():
        monkeypatch.setitem(KNOWN_CONTENT, name, KnownContent(hashlib.sha256(content).hexdigest(), len(content)))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(fashion_mnist, "FETCHERS", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return contents


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def cached_file(cache: Path) -> Path:
    return cache / "frl_repro" / "fashion_mnist-32.safetensors"


def put(folder: Path, contents: dict[str, bytes], *, compress: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.gz" if compress else folder / name).write_bytes(
            gzip.compress(content) if compress else content
        )
    return folder


def refuse_fetch(folder: Path) -> Path:
    raise AssertionError("nothing may be fetched here")


def assert_is_the_data(train: Split, test: Split, contents: dict[str, bytes]) -> None:
    for split, images, labels in ((train, TRAIN_IMAGES, TRAIN_LABELS), (test, TEST_IMAGES, TEST_LABELS)):
        pixels = parse_idx(contents[images])
        assert split.images.shape == (len(pixels), 1, 32, 32)
        assert np.array_equal(split.images[:, 0].numpy(), resized_one_by_one(pixels))
        assert split.labels.tolist() == parse_idx(contents[labels]).tolist()


def resized_one_by_one(images: np.ndarray, side: int = 32) -> np.ndarray:
    resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized])


# Resize and pixel scale


@pytest.mark.parametrize("shape", [(300, 28, 28), (5, 17, 40), (1, 28, 28), (4, 32, 32)])
def test_resize_equals_pil_image_by_image(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[0] = 255  # rounding at the end of the range
    assert np.array_equal(resize_bilinear(images, 32), resized_one_by_one(images))


def test_batch_to_float_is_the_exact_quotient():
    pixels = torch.arange(256, dtype=torch.uint8)
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(batch_to_float(pixels).numpy(), expected)


def test_batch_to_float_refuses_what_is_scaled_already():
    with pytest.raises(TypeError, match=r"takes uint8 pixels in 0..255, got torch.float32"):
        batch_to_float(torch.zeros(2))


@pytest.mark.gpu
def test_batch_to_float_is_the_exact_quotient_on_the_gpu():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(batch_to_float(pixels.cuda()).cpu(), batch_to_float(pixels))


# Sources


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
def test_root_in_both_layouts(files, cache, tmp_path, folder, compress):
    put(tmp_path / "root" / folder, files, compress=compress)
    train, test = load_fashion_mnist(root=tmp_path / "root", download=False, cache_dir=cache)
    assert_is_the_data(train, test, files)
    assert cached_file(cache).is_file()


def test_root_that_does_not_exist_is_an_error_whatever_else_there_is(files, cache, monkeypatch, tmp_path):
    load_fashion_mnist(root=put(tmp_path / "root", files), download=False, cache_dir=cache)
    put(tmp_path / "system", files)
    with pytest.raises(UserError, match=r"dataset.root=\S*nowhere does not exist: .*dataset.download=true"):
        load_fashion_mnist(root=tmp_path / "nowhere", download=False, cache_dir=cache)
    assert not (tmp_path / "nowhere").exists()


def test_root_that_is_a_file(files, cache, tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match=r"dataset.root=\S*root is no folder"):
        load_fashion_mnist(root=tmp_path / "root", download=True, cache_dir=cache)


def test_root_that_lacks_files(files, cache, tmp_path):
    root = put(tmp_path / "root", {name: files[name] for name in (TRAIN_IMAGES, TEST_LABELS)})
    with pytest.raises(UserError, match=f"lacks {TRAIN_LABELS}, {TEST_IMAGES} .*dataset.download=true"):
        load_fashion_mnist(root=root, download=False, cache_dir=cache)
    assert not cache.exists()


def test_root_is_completed_and_its_files_are_left_alone(files, cache, monkeypatch, tmp_path):
    root = put(tmp_path / "root", {TRAIN_IMAGES: files[TRAIN_IMAGES]}, compress=True)
    (given_file,) = root.iterdir()
    before = given_file.read_bytes(), given_file.stat().st_mtime_ns
    monkeypatch.setattr(
        fashion_mnist, "FETCHERS", {"a download": lambda folder: put(folder / "raw", files, compress=True)}
    )
    train, test = load_fashion_mnist(root=root, download=True, cache_dir=cache)
    assert_is_the_data(train, test, files)
    assert (given_file.read_bytes(), given_file.stat().st_mtime_ns) == before
    kept = root / "FashionMNIST" / "raw"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        name: content for name, content in files.items() if name != TRAIN_IMAGES
    }
    load_fashion_mnist(root=root, download=False, cache_dir=tmp_path / "other-cache")


def test_root_is_created_for_a_download(files, cache, monkeypatch, tmp_path):
    put(tmp_path / "system", files, compress=True)
    train, test = load_fashion_mnist(root=tmp_path / "new", download=True, cache_dir=cache)
    assert_is_the_data(train, test, files)
    assert len(list((tmp_path / "new/FashionMNIST/raw").iterdir())) == 4


def test_root_that_cannot_be_written_to_is_only_logged(files, cache, monkeypatch, tmp_path, caplog):
    put(tmp_path / "system", files, compress=True)
    root = tmp_path / "root"
    root.mkdir()
    (root / "FashionMNIST").write_text("a file where the folder would be")
    train, test = load_fashion_mnist(root=root, download=True, cache_dir=cache)
    assert_is_the_data(train, test, files)
    assert "cannot be kept" in caplog.text


def test_system_copy_is_used_before_any_fetch(files, cache, monkeypatch, tmp_path):
    put(tmp_path / "system", files, compress=True)
    monkeypatch.setattr(fashion_mnist, "FETCHERS", {"a download": refuse_fetch})
    assert_is_the_data(*load_fashion_mnist(root=None, download=True, cache_dir=cache), files)


def test_second_fetcher_takes_over_when_the_first_fails_or_brings_wrong_files(files, cache, monkeypatch):
    def out_of_reach(folder: Path) -> Path:
        raise fetch.FetchError("host out of reach")

    def wrong_content(folder: Path) -> Path:
        return put(folder, files | {TEST_LABELS: b"<html>please log in</html>"})

    def empty(folder: Path) -> Path:
        return folder

    first_ones = {"first": out_of_reach, "second": wrong_content, "third": empty}
    monkeypatch.setattr(fashion_mnist, "FETCHERS", {**first_ones, "last": lambda folder: put(folder, files)})
    assert_is_the_data(*load_fashion_mnist(root=None, download=True, cache_dir=cache), files)
    cached_file(cache).unlink()

    monkeypatch.setattr(fashion_mnist, "FETCHERS", first_ones)
    with pytest.raises(
        UserError,
        match=rf"first \(host out of reach\); second \(.*{TEST_LABELS} is damaged.*; third \(.* lacks {TRAIN_IMAGES}\)",
    ):
        load_fashion_mnist(root=None, download=True, cache_dir=cache)
    assert not cached_file(cache).exists()


@pytest.mark.parametrize("download", [False, True])
def test_one_line_names_three_ways_when_all_sources_fail(files, cache, monkeypatch, download):
    def out_of_reach(folder: Path) -> Path:
        raise fetch.FetchError("host out of reach")

    monkeypatch.setattr(fashion_mnist, "FETCHERS", {"a download": out_of_reach})
    with pytest.raises(UserError, match="Fashion-MNIST not found") as caught:
        load_fashion_mnist(root=None, download=download, cache_dir=cache)
    message = str(caught.value)
    assert "\n" not in message
    for way in ("dataset.root", "package dataset-fashion-mnist"):
        assert way in message
    assert ("set dataset.download=true" in message) != download  # advice that was followed already does not help
    assert ("a download (host out of reach)" in message) == download
    assert ("not allowed by dataset.download=false" in message) != download
    assert not cache.exists()


# Content checks


def damaged(kind: str, content: bytes) -> bytes:
    return {
        "truncated": content[:-100],
        "empty": b"",
        "longer": content + b"\0",
        "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
        "foreign": idx_bytes(np.zeros((NUM_TRAIN, 28, 28), dtype=np.uint8)),
    }[kind]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["truncated", "empty", "longer", "flipped", "foreign"])
def test_wrong_content_is_refused_by_name_and_never_cached(files, cache, tmp_path, kind, compress):
    wrong = damaged(kind, files[TRAIN_IMAGES])
    root = put(tmp_path / "root", files | {TRAIN_IMAGES: wrong}, compress=compress)
    expected, size = KNOWN_CONTENT[TRAIN_IMAGES].sha256[:12], len(files[TRAIN_IMAGES])
    got_size = f"more than {size}" if kind == "longer" else len(wrong)
    with pytest.raises(
        UserError,
        match=rf"root/{TRAIN_IMAGES}\S* is damaged or another file "
        rf"\(expected sha256 {expected} of {size} bytes, got [0-9a-f]{{12}} of {got_size} bytes\)",
    ):
        load_fashion_mnist(root=root, download=True, cache_dir=cache)
    assert not cache.exists()
    assert len(list(root.iterdir())) == 4


@pytest.mark.parametrize("kind", ["truncated", "no gzip", "flipped"])
def test_broken_gzip_is_refused_by_name_and_never_cached(files, cache, tmp_path, kind):
    root = put(tmp_path / "root", files, compress=True)
    path = root / f"{TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "no gzip": b"<html>not found</html>",
            "flipped": whole[:10] + b"\xff\xff\xff" + whole[13:],
        }[kind]
    )
    with pytest.raises(
        UserError, match=rf"{path.name} is not a whole gzip file \(.*expected sha256 .* bytes\)"
    ) as caught:
        load_fashion_mnist(root=root, download=False, cache_dir=cache)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_damaged_system_copy_is_refused_by_name(files, cache, monkeypatch, tmp_path):
    put(tmp_path / "system", files | {TEST_LABELS: b"something else"})
    with pytest.raises(UserError, match=f"system/{TEST_LABELS} is damaged or another file"):
        load_fashion_mnist(root=None, download=True, cache_dir=cache)
    assert not cache.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_is_refused_by_name(files, cache, tmp_path):
    root = put(tmp_path / "root", files)
    (root / TRAIN_LABELS).chmod(0)
    with pytest.raises(UserError, match=rf"{TRAIN_LABELS} cannot be read \(Permission denied\)"):
        load_fashion_mnist(root=root, download=False, cache_dir=cache)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0\0\1", b"\x89PNG\r\n", b"\0\0\x0d\x01\0\0\0\0"]
)
def test_idx_header_of_another_format_is_refused(content):
    with pytest.raises(ValueError, match="no IDX file of unsigned bytes"):
        parse_idx(content)


def test_idx_header_that_does_not_match_the_size_is_refused():
    with pytest.raises(ValueError, match=r"IDX header tells shape \(2, 3\), but 5 values follow"):
        parse_idx(idx_bytes(np.zeros((2, 3), dtype=np.uint8))[:-1])


# Cache


def test_cache_alone_is_enough_and_holds_the_same_data(files, cache, tmp_path):
    root = put(tmp_path / "root", files)
    fresh = load_fashion_mnist(root=root, download=False, cache_dir=cache)
    cached = load_fashion_mnist(root=None, download=False, cache_dir=cache)
    for one, other in zip(fresh, cached, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert [path.name for path in cached_file(cache).parent.iterdir()] == [cached_file(cache).name]


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no tensors in here"),
    ],
    ids=["flipped", "truncated", "empty", "foreign"],
)
def test_damaged_cache_is_rebuilt_with_a_warning(files, cache, tmp_path, caplog, damage):
    put(tmp_path / "system", files)
    load_fashion_mnist(root=None, download=False, cache_dir=cache)
    good = cached_file(cache).read_bytes()
    damage(cached_file(cache))
    with caplog.at_level(logging.WARNING):
        assert_is_the_data(*load_fashion_mnist(root=None, download=False, cache_dir=cache), files)
    assert "made again" in caplog.text
    assert cached_file(cache).read_bytes() == good


def test_outdated_cache_is_not_used(cache, caplog):
    caplog.set_level(logging.INFO)
    store_tensors(cache / "file", {"x": torch.arange(3)}, identity="version 1")
    assert load_tensors(cache / "file", identity="version 1")["x"].tolist() == [0, 1, 2]
    assert load_tensors(cache / "file", identity="version 2") is None
    assert "is of other files or settings and is made anew" in caplog.text
    assert "damaged" not in caplog.text


def test_a_cache_that_does_not_say_what_it_was_made_from_still_serves(cache, caplog):
    """As version 0.1 wrote it: the cache may be all that a machine without network has."""
    tensors = {"x": torch.arange(3)}
    store_tensors(cache / "file", tensors, identity="version 1")
    with safe_open(cache / "file", framework="pt") as file:
        checksum = file.metadata()["sha256"].split()[0]
    safetensors.torch.save_file(tensors, cache / "file", metadata={"sha256": checksum})
    assert load_tensors(cache / "file", identity="version 1")["x"].tolist() == [0, 1, 2]
    assert load_tensors(cache / "file", identity="version 2") is None
    assert "is damaged or old (wrong sha256)" in caplog.text


def test_cache_that_cannot_be_written_is_only_logged(files, cache, tmp_path, caplog):
    cache.write_text("a file where the folder would be")
    root = put(tmp_path / "root", files)
    assert_is_the_data(*load_fashion_mnist(root=root, download=False, cache_dir=cache), files)
    assert "cannot be written" in caplog.text


def test_cache_folder_defaults(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None) == tmp_path / "xdg" / "frl_repro"
    assert cache_folder(tmp_path / "given") == tmp_path / "given" / "frl_repro"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder(None) == tmp_path / "home" / ".cache" / "frl_repro"


# Fetching


def script(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def stub_path(monkeypatch, tmp_path) -> Path:
    """Folder for stub programs, first on PATH; what they were called with goes to ``calls``."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    script(
        tmp_path / "bin" / "dpkg-deb",
        f'[ "$1" = --extract ] || exit 2; mkdir -p "$3/usr/share/datasets"\n'
        f'cp -r "{tmp_path}/packaged" "$3/{fetch.PACKAGE_FOLDER}"',
    )
    return tmp_path / "bin"


PACKAGE = f"{fetch.PACKAGE_NAME}_0_all.deb"


def test_apt_fetches_the_package(files, cache, stub_path, monkeypatch, tmp_path):
    put(tmp_path / "packaged", files, compress=True)
    script(stub_path / "apt-get", f'echo "$@" >> "$CALLS"; : > {PACKAGE}')
    monkeypatch.setattr(fashion_mnist, "FETCHERS", {"apt-get": fetch.fetch_with_apt})
    assert_is_the_data(*load_fashion_mnist(root=None, download=True, cache_dir=cache), files)
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.endswith(f"download {fetch.PACKAGE_NAME}")
    assert "Dir::State::Lists" not in call


def test_apt_tries_again_with_lists_of_its_own(files, cache, stub_path, monkeypatch, tmp_path):
    put(tmp_path / "packaged", files, compress=True)
    script(
        stub_path / "apt-get",
        'echo "$@" >> "$CALLS"\n'
        'case "$*" in\n'
        '*update) [ -d lists/partial ] && touch lists/here; echo "E: one source is out of reach" >&2; exit 100;;\n'
        f"*Dir::State::Lists=*download*) [ -e lists/here ] && : > {PACKAGE};;\n"
        '*) echo "E: Unable to locate package" >&2; exit 100;;\n'
        "esac",
    )
    monkeypatch.setattr(fashion_mnist, "FETCHERS", {"apt-get": fetch.fetch_with_apt})
    assert_is_the_data(*load_fashion_mnist(root=None, download=True, cache_dir=cache), files)
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


def test_apt_failures_say_why(stub_path, monkeypatch, tmp_path):
    script(stub_path / "apt-get", 'echo "W: something" >&2; echo "E: no network here" >&2; exit 100')
    with pytest.raises(fetch.FetchError, match=r"^apt-get download failed: E: no network here$"):
        fetch.fetch_with_apt(put(tmp_path / "1", {}))
    script(stub_path / "apt-get", "exit 0")
    with pytest.raises(fetch.FetchError, match="left no package"):
        fetch.fetch_with_apt(put(tmp_path / "2", {}))
    script(stub_path / "apt-get", "exec sleep 30")
    monkeypatch.setattr(fetch, "COMMAND_TIMEOUT", 0.05)
    with pytest.raises(fetch.FetchError, match="took more than"):
        fetch.fetch_with_apt(put(tmp_path / "3", {}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetch.FetchError, match="no apt-get on this machine"):
        fetch.fetch_with_apt(tmp_path)


def test_host_out_of_reach_is_known_before_torchvision_is_imported(monkeypatch, tmp_path):
    def fail(request, timeout):
        assert request.full_url.endswith(".gz")
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(fetch.urllib.request, "urlopen", fail)
    with pytest.raises(fetch.FetchError, match=r"host out of reach: .*Name or service not known"):
        fetch.fetch_with_torchvision(tmp_path)


def test_address_is_found_in_the_installed_torchvision():
    address = fetch._first_address("mnist.py", "FashionMNIST")
    assert address is not None
    assert address.startswith("http")
    assert address.endswith(f"{TRAIN_IMAGES}.gz")


@pytest.mark.parametrize("source", [None, "class FashionMNIST:\n    mirrors = []\n", "class FashionMNIST(\n", ""])
def test_unknown_torchvision_source_means_no_probe(monkeypatch, tmp_path, source):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    if source is not None:
        (tmp_path / "datasets").mkdir()
        (tmp_path / "datasets" / "mnist.py").write_text(source)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: Spec())
    assert fetch._first_address("mnist.py", "FashionMNIST") is None
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: None)
    assert fetch._first_address("mnist.py", "FashionMNIST") is None


class FakeDatasets:
    """Stands for the module torchvision.datasets, whose import takes a minute on a slow machine."""

    class FashionMNIST:
        error: Exception | None = None
        timeout_inside: float | None = None

        def __init__(self, root: str, *, download: bool) -> None:
            assert download
            type(self).timeout_inside = socket.getdefaulttimeout()
            if self.error is not None:
                raise self.error
            self.raw_folder = f"{root}/FashionMNIST/raw"


@pytest.fixture
def fake_torchvision(monkeypatch):
    monkeypatch.setattr(fetch, "_first_address", lambda *_: None)
    monkeypatch.setitem(sys.modules, "torchvision", FakeDatasets)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", FakeDatasets)
    return FakeDatasets.FashionMNIST


def test_torchvision_downloads_with_a_timeout_that_is_put_back(fake_torchvision, tmp_path):
    before = socket.getdefaulttimeout()
    assert fetch.fetch_with_torchvision(tmp_path) == tmp_path / "FashionMNIST" / "raw"
    assert fake_torchvision.timeout_inside == 20
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    "error", [RuntimeError("Error downloading x:\nTried y"), urllib.error.URLError("no\nroute"), TimeoutError()]
)
def test_torchvision_failures_become_one_line(fake_torchvision, monkeypatch, tmp_path, error):
    monkeypatch.setattr(fake_torchvision, "error", error)
    before = socket.getdefaulttimeout()
    with pytest.raises(fetch.FetchError) as caught:
        fetch.fetch_with_torchvision(tmp_path)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() == before


# Data sets


def test_load_dataset_splits_fashion_mnist(files, cache, tmp_path):
    put(tmp_path / "root", files)
    dataset = load_dataset(FashionMnistConfig(root=str(tmp_path / "root"), cache_dir=str(cache)))
    assert (dataset.name, dataset.num_classes, dataset.class_names[6]) == ("fashion_mnist", 10, "Shirt")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (30, 10, 20)
    whole, _ = load_fashion_mnist(root=tmp_path / "root", download=False, cache_dir=cache)
    assert torch.equal(dataset.train.images, whole.images[dataset.train_indices])
    assert torch.equal(dataset.validation.images, whole.images[dataset.validation_indices])
    assert torch.bincount(dataset.validation.labels).tolist() == [1] * 10


def test_load_dataset_takes_subsets_in_file_order(files, cache, tmp_path):
    put(tmp_path / "root", files)
    settings = {"root": str(tmp_path / "root"), "cache_dir": str(cache), "validation_fraction": 0.0}
    dataset = load_dataset(FashionMnistConfig(num_train=20, num_test=10, **settings))
    assert dataset.validation is None
    assert len(dataset.validation_indices) == 0
    assert torch.bincount(dataset.train.labels).tolist() == [2] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1] * 10
    whole, _ = load_fashion_mnist(root=tmp_path / "root", download=False, cache_dir=cache)
    assert torch.equal(dataset.train.images, whole.images[dataset.train_indices])
    assert dataset.train_indices.tolist() == sorted(dataset.train_indices.tolist())
    for key, there in (("num_train", NUM_TRAIN), ("num_test", NUM_TEST)):
        with pytest.raises(UserError, match=rf"dataset\.{key}={there + 1}: .* but there are {there}"):
            load_dataset(FashionMnistConfig(**settings, **{key: there + 1}))


def test_root_and_cache_dir_may_begin_with_a_tilde(files, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "root", files)
    load_dataset(FashionMnistConfig(root="~/root", cache_dir="~/cache"))
    assert cached_file(tmp_path / "cache").is_file()


def test_unknown_data_set_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown data set 'mnist': known are fashion_mnist, cifar10, .*, synthetic"):
        load_dataset(SyntheticConfig(name="mnist"))


def test_load_dataset_synthetic():
    dataset = load_dataset(SyntheticConfig())
    assert isinstance(dataset, Dataset)
    assert dataset.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 10, 20)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4).double(), torch.zeros(2, dtype=torch.int64), "images must be uint8 or float32"),
        (torch.full((2, 1, 4, 4), 255.0), torch.zeros(2, dtype=torch.int64), r"must lie in \[0, 1\]"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2, dtype=torch.int64), r"must lie in \[0, 1\]"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"of shape \(N, C, H, W\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels must be int64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"of shape \(2,\)"),
    ],
)
def test_split_refuses_other_types_and_shapes(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images=images, labels=labels)


# Synthetic images


@settings(deadline=None)  # the first call of a torch function takes long
@given(num_classes=st.integers(2, 13), extra=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_synthetic_is_balanced_and_reproducible(num_classes, extra, seed):
    state = torch.get_rng_state()
    num_train, num_test = num_classes + extra, num_classes + 5
    train, test = load_synthetic(num_classes=num_classes, num_train=num_train, num_test=num_test, seed=seed)
    again, _ = load_synthetic(num_classes=num_classes, num_train=num_train, num_test=num_classes, seed=seed)
    assert torch.equal(train.images, again.images)
    assert torch.equal(torch.get_rng_state(), state)
    for split, num in ((train, num_train), (test, num_test)):
        assert split.images.shape == (num, 1, 32, 32)
        counts = torch.bincount(split.labels, minlength=num_classes)
        assert len(counts) == num_classes
        assert counts.min() == num // num_classes
        assert counts.max() == math.ceil(num / num_classes)


def test_synthetic_classes_differ_in_difficulty_and_can_be_learnt():
    train, test = load_synthetic(num_classes=4, num_train=1000, num_test=4000, seed=0)
    means = torch.stack([batch_to_float(train.images[train.labels == k]).mean(dim=0) for k in range(4)])
    distances = torch.cdist(batch_to_float(test.images).flatten(1), means.flatten(1))
    is_wrong = (distances.argmin(dim=1) != test.labels).float()
    class_errors = torch.stack([is_wrong[test.labels == k].mean() for k in range(4)])
    assert class_errors[:2].min() > 0.01
    assert class_errors.max() < 0.1
    assert class_errors[2:].max() < 0.005


def test_synthetic_refuses_impossible_sizes():
    with pytest.raises(UserError, match="num_classes=1 is out of range"):
        load_synthetic(num_classes=1, num_train=10, num_test=10, seed=0)
    with pytest.raises(UserError, match="num_test=2 leaves some of 3 classes empty: give at least 3"):
        load_synthetic(num_classes=3, num_train=10, num_test=2, seed=0)


# Atomic writes


def test_atomic_write_creates_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    atomic.write_text(path, "ä\n")
    atomic.write_text(path, "ö\n")
    assert path.read_bytes() == "ö\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_atomic_write_leaves_the_old_content_alone(tmp_path, error):
    path = tmp_path / "table.csv"
    atomic.write_text(path, "old")

    def write_half() -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            assert list(tmp_path.glob(atomic.TEMPORARY_PATTERN)) == [temporary]
            assert temporary.name.startswith(f".{path.name}.{os.getpid()}-")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# The real data set


@pytest.mark.data
def test_real_fashion_mnist():
    dataset = load_dataset(FashionMnistConfig(download=True, validation_fraction=0.1))
    assert dataset.train.images.shape == (54_000, 1, 32, 32)
    assert dataset.test.images.shape == (10_000, 1, 32, 32)
    assert torch.bincount(dataset.train.labels).tolist() == [5_400] * 10
    assert torch.bincount(dataset.validation.labels).tolist() == [600] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1_000] * 10
    whole, _ = load_fashion_mnist(root=None, download=True, cache_dir=None)
    assert torch.bincount(whole.labels).tolist() == [6_000] * 10
    # First label of the training file, as the publisher shows it: an ankle boot.
    assert dataset.class_names[whole.labels[0]] == "Ankle boot"


def test_the_digest_follows_what_a_data_set_holds():
    same, other_seed = load_dataset(SyntheticConfig()), load_dataset(SyntheticConfig(split_seed=1))
    first = load_dataset(SyntheticConfig())
    assert first.digest == same.digest
    assert first.digest != other_seed.digest

    def changed(**parts):
        return dataclasses.replace(first, **parts).digest

    pixels = first.test.images.clone()
    pixels[3, 0, 5, 5] ^= 1
    labels = first.test.labels.clone()
    labels[[0, 1]] = labels[[0, 1]] + torch.tensor([1, -1])
    digests = {
        first.digest,
        changed(test=Split(images=pixels, labels=first.test.labels)),
        changed(test=Split(images=first.test.images, labels=labels)),
        changed(train=first.test, test=first.train),
        changed(validation=None),
        changed(class_names=("a", "b", "c", "d", "e")),
    }
    assert len(digests) == 6
