"""Data by name, from idx files and from functions; batches that depend on the seed and the step alone."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from elastic_ir.errors import SourceError
from elastic_ir.training.data import Data, Split, load_data, read_idx
from elastic_ir.training.loader import BatchStream, augmented, batches_of
from tests.training.nets import digits


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


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
    with pytest.raises(SourceError, match="x is no idx file of bytes"):
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
