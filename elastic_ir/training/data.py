"""Data: labelled images for the laboratory, by name, from a folder, or from a function of the user's.

Small sets are held in memory whole, as normalised tensors: a small network would starve behind a loader that decodes
one image at a time. Larger ones (folders of images) are read by torch's loader.
"""

from __future__ import annotations

import gzip
import importlib
import os
import struct
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic_ir import user_functions
from elastic_ir.errors import SourceError

#: Where Debian's package dataset-fashion-mnist puts its four files.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IN_MEMORY = 4 << 30  # bytes of float32 images that are held in memory
_KINDS = ("digits", "fashion-mnist", "idx", "cifar10", "cifar100", "images")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Images (count, channels, height, width) and labels in memory, or a dataset that is read item by item."""

    images: Tensor | None
    labels: Tensor | None
    dataset: Any = None  #: a torch Dataset of (image, label), where it is too large for memory

    def __len__(self) -> int:
        return len(self.images) if self.images is not None else len(self.dataset)


@dataclass(frozen=True)
class Data:
    """A data set: its two splits, and what augmentation may do to it."""

    name: str
    train: Split
    test: Split
    classes: int
    flips: bool = False  #: whether a mirrored image is still one of its class

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: channels, height, width."""
        images = self.train.images
        first = images[0] if images is not None else self.train.dataset[0][0]
        return tuple(first.shape)


def load_data(name: str, channels: int = 0, limit: int = 0) -> Data:
    """The data of that name.

    ``digits`` (scikit-learn, 1,797 images of 8 x 8, a fifth of them for the test), ``fashion-mnist`` (Debian's
    package dataset-fashion-mnist), ``idx:FOLDER`` (four files as MNIST has them, gzipped or not), ``cifar10:FOLDER``,
    ``cifar100:FOLDER`` and ``images:FOLDER`` (``train/`` and ``val/`` with a folder for each class) through
    torchvision, or ``package.module:function``, which returns a pair (train, test), each a torch Dataset or a pair
    (images, labels).

    ``channels=3`` repeats grey images for networks that take colours; ``limit`` keeps the first images of the training
    split, and of ``images:FOLDER``, whose images lie class by class, as many at even distances. Raises SourceError, for
    colours that would have to become grey, too.
    """
    if channels < 0 or limit < 0:
        raise SourceError(f"channels and limit of data are no negative numbers: {channels}, {limit}")
    check_name(name)
    kind, _, rest = name.partition(":")
    if kind == "digits":
        data = _digits()
    elif kind == "fashion-mnist":
        data = _idx("fashion-mnist", Path(rest) if rest else DEBIAN_FASHION, flips=True)
    elif kind == "idx":
        data = _idx(name, Path(rest), flips=False)
    elif kind in ("cifar10", "cifar100"):
        data = _cifar(kind, rest)
    elif kind == "images":
        data = _folders(Path(rest), limit)
    else:
        data = _from_function(name)
    check_splits(data)
    return _shaped(data, channels, limit)


def check_name(name: str) -> None:
    """Whether data of that name can be asked for; a function is looked up, nothing is loaded. Raises SourceError."""
    kind, _, rest = name.partition(":")
    if kind in _KINDS:
        return
    if not rest:
        raise SourceError(
            f"there is no data {name!r}; give digits, fashion-mnist, idx:FOLDER, cifar10:FOLDER, cifar100:FOLDER, "
            "images:FOLDER or package.module:function"
        )
    _function(name)


def check_splits(data: Data) -> None:
    """Whether the images and labels of both splits fit each other; SourceError says both shapes."""
    for split, role in ((data.train, "training"), (data.test, "test")):
        if not len(split):
            raise SourceError(f"{data.name} has no {role} images")
        if split.images is None or split.labels is None:
            continue
        images, labels = ("x".join(map(str, part.shape)) for part in (split.images, split.labels))
        if split.labels.ndim == 0 or len(split.images) != len(split.labels):
            raise SourceError(
                f"the {role} images of {data.name} are {images} and its labels {labels or 'a single number'}; "
                "every image needs one label"
            )
        if split.images.ndim < 2:
            raise SourceError(
                f"the {role} images of {data.name} are {images}; wanted are count x channels x height x width"
            )
    one, two = data.train.images, data.test.images
    if one is not None and two is not None and one.shape[1:] != two.shape[1:]:
        shapes = ("x".join(map(str, part.shape[1:])) for part in (one, two))
        raise SourceError(f"an image of {data.name} is {' for training and '.join(shapes)} for the test")


def _shaped(data: Data, channels: int, limit: int) -> Data:
    if channels and len(data.shape) != 3:
        raise SourceError(
            f"an image of {data.name} is {'x'.join(map(str, data.shape))}, without an axis of channels; "
            f"only grey images, 1 x height x width (images[:, None]), can be made into {channels}"
        )
    repeated = 0  # how often grey images are to be repeated
    if channels and (has := data.shape[0]) != channels:
        if has != 1:
            raise SourceError(
                f"the images of {data.name} have {has} channels; only grey ones can be made into {channels}"
            )
        repeated = channels

    def one(split: Split, most: int) -> Split:
        images, labels, dataset = split.images, split.labels, split.dataset
        if images is None or labels is None:
            if most and most < len(dataset):
                dataset = torch.utils.data.Subset(dataset, range(most))
            return Split(None, None, _Repeated(dataset, repeated) if repeated else dataset)
        if most:
            images, labels = images[:most], labels[:most]
        if repeated:
            images = images.expand(-1, repeated, -1, -1)
        return Split(images.contiguous(), labels)

    return Data(data.name, one(data.train, limit), one(data.test, 0), data.classes, data.flips)


class _Repeated(torch.utils.data.Dataset[tuple[Tensor, Any]]):
    """A dataset of grey images with their one channel repeated; of this file, so that other processes can read it."""

    def __init__(self, dataset: Any, channels: int) -> None:
        self.dataset, self.channels = dataset, channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.dataset[index]
        return torch.as_tensor(image).expand(self.channels, -1, -1), label


def _normalised(name: str, parts: dict[str, tuple[Any, Any]], *, flips: bool) -> Data:
    """Images to mean 0 and deviation 1 for each channel of the training split."""
    tensors = {
        key: (torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y).long())
        for key, (x, y) in parts.items()
    }
    images = tensors["train"][0]
    mean, deviation = (
        images.mean((0, 2, 3), keepdim=True),
        images.std((0, 2, 3), keepdim=True).clamp_min(1e-6),
    )
    splits = {key: Split((x - mean) / deviation, y) for key, (x, y) in tensors.items()}
    return Data(name, splits["train"], splits["test"], int(tensors["train"][1].max()) + 1, flips)


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SourceError(
            "digits come with scikit-learn, which is not installed (pip install scikit-learn)"
        ) from error
    found = load_digits()
    images, labels = found.images[:, None].astype(np.float32), found.target
    order = np.random.default_rng(0).permutation(len(images))
    cut = len(images) * 4 // 5
    parts = {key: (images[at], labels[at]) for key, at in (("train", order[:cut]), ("test", order[cut:]))}
    return _normalised("digits", parts, flips=False)


def _idx(name: str, folder: Path, *, flips: bool) -> Data:
    parts = {}
    for key, (images, labels) in _FILES.items():
        found = [read_idx(_one_of(folder, file)) for file in (images, labels)]
        if found[0].ndim != 3 or found[1].ndim != 1 or len(found[0]) != len(found[1]):
            raise SourceError(f"{folder}: {images} and {labels} do not fit each other")
        parts[key] = (found[0][:, None], found[1])
    return _normalised(name, parts, flips=flips)


def _one_of(folder: Path, file: str) -> Path:
    for path in (folder / file, folder / f"{file}.gz", folder / file.replace("-idx", ".idx")):
        if path.is_file():
            return path
    hint = "; Debian's package dataset-fashion-mnist puts it there" if folder == DEBIAN_FASHION else ""
    raise SourceError(f"{folder} has no {file} (nor {file}.gz){hint}")


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array of bytes in LeCun's idx format (gzipped where the name ends in .gz); SourceError where it is none."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise SourceError(f"{path.name} is no idx file of bytes")
    count = raw[3]
    shape = struct.unpack(f">{count}I", raw[4 : 4 + 4 * count])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * count)
    if values.size != int(np.prod(shape)):
        raise SourceError(
            f"{path.name} holds {values.size} values, its header says {'x'.join(map(str, shape))}"
        )
    return values.reshape(shape).copy()  # torch takes no array that cannot be written to


def _torchvision() -> Any:
    try:
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        raise SourceError(f"this data needs torchvision, which cannot be imported ({error})") from error


def _cifar(kind: str, folder: str) -> Data:
    sets = _torchvision()
    made = sets.CIFAR10 if kind == "cifar10" else sets.CIFAR100
    parts = {}
    for key in ("train", "test"):
        try:
            found = made(folder or ".", train=key == "train", download=False)
        except RuntimeError as error:
            raise SourceError(f"{folder or '.'} has no {kind} ({error})") from error
        parts[key] = (found.data.transpose(0, 3, 1, 2), found.targets)
    return _normalised(kind, parts, flips=True)


def _folders(folder: Path, limit: int = 0) -> Data:
    _torchvision()
    from torchvision import transforms

    norm = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ways = {
        "train": transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                norm,
            ]
        ),
        "val": transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), norm]
        ),
    }
    found = {}
    for key, way in ways.items():
        if not (folder / key).is_dir():
            raise SourceError(f"{folder} has no folder {key!r}; images lie in train/CLASS/ and val/CLASS/")
        try:
            found[key] = _torchvision().ImageFolder(os.fspath(folder / key), way)
        except FileNotFoundError as error:
            raise SourceError(f"{folder / key} holds no images of classes: {error}") from error
    classes = found["train"].classes
    if classes != found["val"].classes:  # labels are places in this list
        differ = sorted(set(classes) ^ set(found["val"].classes))
        raise SourceError(f"{folder}: train and val have other classes; only one of them has {differ[0]!r}")
    train, test = found["train"], found["val"]
    if limit and limit < len(train):
        train = torch.utils.data.Subset(train, [place * len(train) // limit for place in range(limit)])
    return Data(
        f"images:{folder}", Split(None, None, train), Split(None, None, test), len(classes), flips=True
    )


def _function(name: str) -> Any:
    try:
        return user_functions.find(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SourceError(f"{name} cannot be found: {error}") from error


def _from_function(name: str) -> Data:
    function = _function(name)
    made = user_functions.call(function, name, SourceError, what="the data's function")
    try:
        train, test = (_split(part) for part in made)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise SourceError(
            f"{name} returns a pair (train, test), each a Dataset or a pair (images, labels): {error}"
        ) from error
    labels = train.labels
    classes = int(labels.max()) + 1 if labels is not None else len(getattr(train.dataset, "classes", ())) or 1
    return Data(name, train, test, classes)


def _split(part: Any) -> Split:
    if isinstance(part, (tuple, list)) and len(part) == 2:
        return Split(torch.as_tensor(part[0]).float(), torch.as_tensor(part[1]).long())
    if not isinstance(part, Sized):
        raise TypeError(f"{type(part).__name__} has no length")
    first = torch.as_tensor(part[0][0])  # type: ignore[index]
    if first.numel() * 4 * len(part) > _IN_MEMORY:
        return Split(None, None, part)
    items = [part[index] for index in range(len(part))]  # type: ignore[index]
    images = torch.stack([torch.as_tensor(image).float() for image, _ in items])
    return Split(images, torch.tensor([int(label) for _, label in items]))
