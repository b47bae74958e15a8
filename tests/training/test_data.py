"""Data by name, from idx files and from functions; batches that depend on the seed and the step alone."""

from __future__ import annotations

import gzip
import pickle
import struct
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from elastic_ir.errors import SourceError
from elastic_ir.training import data as data_module
from elastic_ir.training.data import Data, Split, load_data, read_idx
from elastic_ir.training.loader import BatchStream, augmented, batches_of, on_device
from tests.training.nets import digits


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def test_a_split_lies_on_a_device_once_for_all_trainings() -> None:
    images = torch.randn(6, 3, 4, 4)
    split = Split(images, torch.arange(6))
    cpu = torch.device("cpu")
    one, two = (on_device(split, cpu, channels_last=True) for _ in range(2))
    assert (
        one is two and one.images is not None and one.images.is_contiguous(memory_format=torch.channels_last)
    )
    assert torch.equal(one.images, images)
    plain = on_device(split, cpu, channels_last=False)
    assert plain.images is images
    images.mul_(2)  # somebody changes the data between two trainings
    changed = on_device(split, cpu, channels_last=True)
    assert changed.images is not None and torch.equal(changed.images, images)
    gone = weakref.ref(one.images)
    del one, two, plain, changed, split
    assert gone() is None


def test_digits_are_normalised_and_split_the_same_every_time() -> None:
    data = digits()
    assert (len(data.train), len(data.test), data.classes, data.shape) == (1437, 360, 10, (1, 8, 8))
    assert data.train.images is not None and data.train.labels is not None
    assert abs(float(data.train.images.mean())) < 1e-5 and abs(float(data.train.images.std()) - 1) < 1e-3
    again = digits()
    assert again.train.images is not None and torch.equal(data.train.images, again.train.images)
    coloured = load_data("digits", channels=3, limit=100)
    assert coloured.shape == (3, 8, 8) and len(coloured.train) == 100 and len(coloured.test) == 360


def test_idx_files_with_and_without_gzip(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for key, count in (("train", 12), ("t10k", 4)):
        write_idx(tmp_path / f"{key}-images-idx3-ubyte", generator.integers(0, 256, (count, 5, 5), np.uint8))
        write_idx(tmp_path / f"{key}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 3)
    data = load_data(f"idx:{tmp_path}")
    assert data.shape == (1, 5, 5) and data.classes == 3 and (len(data.train), len(data.test)) == (12, 4)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        SourceError, match=r"has no t10k-labels-idx1-ubyte \(nor t10k-labels-idx1-ubyte\.gz\)"
    ):
        load_data(f"idx:{tmp_path}")


def test_a_damaged_idx_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(SourceError, match="x is not an idx file of bytes"):
        read_idx(path)
    path.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 5) + b"abc")
    with pytest.raises(SourceError, match="x holds 3 values, its header says 5"):
        read_idx(path)


def test_data_of_a_users_function() -> None:
    data = load_data("tests.training.nets:pair")
    assert data.shape == (1, 4, 4) and data.classes == 3 and (len(data.train), len(data.test)) == (15, 5)
    with pytest.raises(SourceError, match="returns a pair"):
        load_data("tests.training.nets:nothing")
    with pytest.raises(SourceError, match=r"tests\.training\.nets:absent cannot be found"):
        load_data("tests.training.nets:absent")
    with pytest.raises(
        SourceError, match="the data's function operator:neg fails without arguments: TypeError"
    ):
        load_data("operator:neg")


def test_unknown_data_lists_what_there_is() -> None:
    with pytest.raises(SourceError, match="there is no data 'mnist'; give digits, fashion-mnist, idx:FOLDER"):
        load_data("mnist")


def test_a_stream_that_begins_later_gives_what_it_would_have_given() -> None:
    data = digits()
    whole = list(BatchStream(data, 300, seed=1, stop=9, augment=True))
    later = list(BatchStream(data, 300, seed=1, start=5, stop=9, augment=True))
    assert len(whole) == 9 and len(later) == 4
    for (x, y), (u, v) in zip(whole[5:], later, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
    other = next(iter(BatchStream(data, 300, seed=2, stop=9)))
    assert not torch.equal(whole[0][1], other[1])


def test_an_epoch_holds_every_image_once() -> None:
    stream = BatchStream(digits(), 100, seed=0, stop=28)
    first, second = torch.cat(list(stream.indices())).reshape(2, 1400)
    assert len(set(first.tolist())) == 1400 and not torch.equal(first, second)


def test_processes_share_out_every_batch() -> None:
    data = digits()
    whole = list(BatchStream(data, 64, seed=3, stop=3).indices())
    parts = [list(BatchStream(data, 64, seed=3, stop=3, rank=rank, world=2).indices()) for rank in (0, 1)]
    for batch, one, two in zip(whole, *parts, strict=True):
        assert torch.equal(batch[0::2], one) and torch.equal(batch[1::2], two)


def test_augmentation_moves_each_image_and_keeps_its_pixels() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 8, 3] = 1.0
    moved = augmented(images, torch.Generator().manual_seed(0), flips=False)
    places = moved.flatten(1).argmax(1)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64)) and moved.shape == images.shape
    rows, columns = places // 16, places % 16
    assert set(rows.tolist()) == {6, 7, 8, 9, 10} and set(columns.tolist()) == {1, 2, 3, 4, 5}
    flipped = augmented(images, torch.Generator().manual_seed(0), flips=True).flatten(1).argmax(1) % 16
    assert {1, 2, 3, 4, 5} & set(flipped.tolist()) and {10, 11, 12, 13, 14} & set(flipped.tolist())


def test_a_set_too_large_for_memory_is_read_in_the_same_order() -> None:
    data = digits()
    assert data.train.images is not None and data.train.labels is not None
    items = torch.utils.data.TensorDataset(data.train.images, data.train.labels)
    streamed = Data("streamed", Split(None, None, items), data.test, 10)
    assert streamed.shape == (1, 8, 8)
    for (x, y), (u, v) in zip(
        BatchStream(data, 128, seed=0, stop=4), BatchStream(streamed, 128, seed=0, stop=4), strict=True
    ):
        assert torch.equal(x, u) and torch.equal(y, v)
    assert sum(len(y) for _, y in batches_of(streamed.train, 500, "cpu")) == 1437
    endless = BatchStream(streamed, 128, seed=0, stop=10**9)  # no list of all its steps is made
    assert torch.equal(next(iter(endless))[1], next(iter(BatchStream(data, 128, seed=0, stop=1)))[1])


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a set that is read item by item, as if it were too large for memory."""
    monkeypatch.setattr(data_module, "_IN_MEMORY", 100)
    return "tests.training.nets:large"


@pytest.mark.parametrize("workers", [0, 1])
def test_limit_and_channels_hold_for_a_set_that_is_read_item_by_item(streamed: str, workers: int) -> None:
    data = load_data(streamed, channels=3, limit=4)
    assert data.train.images is None and data.shape == (3, 4, 4) and data.classes == 2
    assert (len(data.train), len(data.test)) == (4, 10)
    ((images, labels),) = BatchStream(data, 4, seed=0, stop=1, workers=workers)
    assert images.shape == (4, 3, 4, 4) and sorted(images[:, 2, 3, 3].tolist()) == [0, 1, 2, 3]
    assert torch.equal(labels, images[:, 0, 0, 0].long() % 2)
    assert [images.shape for images, _ in batches_of(data.test, 10, "cpu")] == [(10, 3, 4, 4)]
    plain = load_data(streamed, limit=100)
    assert plain.shape == (1, 4, 4) and len(plain.train) == 10


@pytest.mark.parametrize("channels", [1, 4])
def test_colours_are_not_silently_left_as_they_are(tmp_path: Path, channels: int) -> None:
    with pytest.raises(SourceError, match=rf"have 3 channels; only grey ones can be made into {channels}"):
        load_data(f"images:{picture_folder(tmp_path)}", channels=channels)
    with pytest.raises(SourceError, match="cannot be negative: 0, -1"):
        load_data("digits", limit=-1)


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def picture_folder(folder: Path, train: int = 4, val: int = 2) -> Path:
    """PNGs of one colour each: ``train`` and ``val`` of each class."""
    image = pytest.importorskip("PIL.Image")
    for key, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            (folder / key / name).mkdir(parents=True)
            for number in range(count):
                image.new("RGB", (40, 30), colour).save(folder / key / name / f"{number}.png")
    return folder


def test_a_folder_of_images(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    data = load_data(f"images:{picture_folder(tmp_path)}", channels=3)
    assert data.shape == (3, 224, 224) and data.classes == 3 and data.flips
    assert (len(data.train), len(data.test)) == (12, 6)
    for found in (batches_of(data.test, 6, "cpu"), BatchStream(data, 12, seed=0, stop=1)):
        ((images, labels),) = found
        assert images.shape[1:] == (3, 224, 224)
        assert torch.bincount(labels).tolist() == [len(images) // 3] * 3
        brightest = images.mean((2, 3)).argmax(1)  # channels are red, green, blue, and classes by name
        assert torch.equal(brightest, 2 - labels)
    few = load_data(f"images:{tmp_path}", limit=6)
    assert (len(few.train), len(few.test)) == (6, 6) and few.classes == 3
    assert [few.train.dataset[index][1] for index in range(6)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]  # not of the first class alone


def test_a_folder_of_images_that_is_none_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(
        SourceError, match=r"has no folder 'train'; images lie in train/CLASS/ and val/CLASS/"
    ):
        load_data(f"images:{tmp_path}")
    for file in (picture_folder(tmp_path) / "val" / "green").iterdir():
        file.unlink()
    with pytest.raises(
        SourceError, match="val holds no images of classes: Found no valid file for the classes green"
    ):
        load_data(f"images:{tmp_path}")
    (tmp_path / "val" / "green").rmdir()
    with pytest.raises(SourceError, match="train and val have other classes; only one of them has 'green'"):
        load_data(f"images:{tmp_path}")


def test_cifar_as_torchvision_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pickled batches and one for the test: rows of 1,024 red, then green, then blue values."""
    cifar = pytest.importorskip("torchvision.datasets").CIFAR10
    with pytest.raises(SourceError, match="has no cifar10"):
        load_data(f"cifar10:{tmp_path}")
    place = tmp_path / cifar.base_folder
    place.mkdir()
    generator = np.random.default_rng(0)
    rows = {}
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows[name] = generator.integers(0, 256, (10, 3072), np.uint8)
        batch = {"data": rows[name], "labels": [(number + k) % 10 for k in range(10)]}
        (place / name).write_bytes(pickle.dumps(batch))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))
    for key in ("train_list", "test_list"):  # the checksums are those of the real files
        monkeypatch.setattr(cifar, key, [[name, None] for name, _ in getattr(cifar, key)])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": None})
    data = load_data(f"cifar10:{tmp_path}", channels=3)
    assert data.shape == (3, 32, 32) and data.classes == 10 and data.flips
    assert (len(data.train), len(data.test)) == (50, 10)
    assert data.train.images is not None and data.train.labels is not None
    assert data.test.images is not None and data.test.labels is not None
    assert data.train.labels[:12].tolist() == [*range(10), 1, 2]
    assert data.test.labels.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    pixels = (
        np.concatenate([rows[f"data_batch_{k}"] for k in range(1, 6)]).reshape(-1, 3, 32, 32).astype(float)
    )
    mean, deviation = (made((0, 2, 3), keepdims=True) for made in (pixels.mean, pixels.std))
    test = (rows["test_batch"].reshape(-1, 3, 32, 32) - mean) / deviation  # by the training split's numbers
    np.testing.assert_allclose(data.test.images, test, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(data.train.images, (pixels - mean) / deviation, rtol=1e-3, atol=1e-3)
