"""Data: inputs and targets for the laboratory, by name, from a folder, or from a function of the user's.

What is the same at every reading (our own sets, tensors that a function returns) is held in memory whole: a small
network would starve behind a loader that decodes one image at a time. Everything else is read anew each epoch by
torch's loader, for a Dataset may augment what it reads. Inputs and targets keep their dtype.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Sized
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from elastic_ir import user_functions
from elastic_ir.errors import ElasticError, SourceError, one_line
from elastic_ir.extras import import_extra
from elastic_ir.training.items import as_tensor, extents, read_item, read_items, taken, weights_dtype
from elastic_ir.training.settings import DATA_KINDS

#: Where Debian's package dataset-fashion-mnist puts its four files.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IN_MEMORY = 4 << 30  # bytes of a list of items that are stacked in memory
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs (count x ..., images as channels x height x width) and targets in memory, or a dataset that is read.

    A dataset is read item by item, anew each epoch, since it may augment what it reads or be too large for memory.
    """

    images: Tensor | None
    labels: Tensor | None
    dataset: Any = None  #: a torch Dataset of (input, target)

    def __len__(self) -> int:
        return len(self.images) if self.images is not None else len(self.dataset)


@dataclass(frozen=True)
class Data:
    """A data set: its two splits, and what augmentation may do to it."""

    name: str
    train: Split
    test: Split
    classes: int = 0  #: 0 where it is not known, or the targets are not classes
    flips: bool = False  #: whether a mirrored image is still one of its class
    augmented: bool = False  #: whether its training split is augmented as it is read

    @cached_property
    def first(self) -> Tensor:
        """The first input of the training split."""
        return _first(self.train)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input; of an image channels, height, width."""
        return tuple(self.first.shape)

    def example(self, network: nn.Module) -> Tensor:
        """A batch of one input, zeros, as the network takes it."""
        return torch.zeros(1, *self.shape, dtype=taken(self.first, weights_dtype(network)).dtype)


def _first(split: Split) -> Tensor:
    return read_item(split.dataset, 0)[0] if split.images is None else split.images[0]


def load_data(name: str, channels: int = 0, limit: int = 0) -> Data:
    """The data of that name.

    ``digits`` (scikit-learn, 1,797 images of 8 x 8, a fifth of them for the test), ``fashion-mnist`` (Debian's
    package dataset-fashion-mnist), ``idx:FOLDER`` (four files as MNIST has them, gzipped or not), ``cifar10:FOLDER``,
    ``cifar100:FOLDER`` and ``images:FOLDER`` (``train/`` and ``val/`` with a folder for each class) through
    torchvision, or ``package.module:function``, which returns a pair (train, test), each a torch Dataset or a pair
    (inputs, targets). Their dtypes stay; a Dataset is read anew each epoch, unless it is a TensorDataset or a list,
    which gives the same items every time.

    ``channels=3`` repeats grey images for networks that take colours; ``limit`` keeps the first images of the training
    split, or, where they lie class by class or sorted, as many at even distances (of a Dataset that is read, by its
    attribute ``targets``). Raises SourceError, for colours that would have to become grey, too.
    """
    if channels < 0 or limit < 0:
        raise SourceError(f"channels and limit of data cannot be negative: {channels}, {limit}")
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
        data = _folders(Path(rest))
    else:
        data = _from_function(name)
    check_splits(data)
    return _shaped(data, channels, limit)


def check_name(name: str) -> None:
    """Check that data of that name exist: a function is looked up, nothing is loaded. Raises SourceError."""
    kind, _, rest = name.partition(":")
    if kind in DATA_KINDS:
        return
    if not rest:
        raise SourceError(
            f"there is no data {name!r}; give digits, fashion-mnist, idx:FOLDER, cifar10:FOLDER, cifar100:FOLDER, "
            "images:FOLDER or package.module:function"
        )
    find_function(name)


def check_splits(data: Data) -> None:
    """Check that the images and labels of both splits fit each other; SourceError names both shapes."""
    for split, role in ((data.train, "training"), (data.test, "test")):
        if not len(split):
            raise SourceError(f"{data.name} has no {role} images")
        if split.images is None or split.labels is None:
            continue
        images, labels = extents(split.images.shape), extents(split.labels.shape)
        if split.labels.ndim == 0 or len(split.images) != len(split.labels):
            raise SourceError(
                f"the {role} images of {data.name} are {images} and its labels {labels}; "
                "every image needs one label"
            )
        if split.images.ndim < 2:
            raise SourceError(
                f"the {role} images of {data.name} are {images}; expected count x channels x height x width"
            )
    try:
        one, two = data.first, _first(data.test)
    except TypeError as error:
        raise SourceError(f"{data.name} cannot be read: {error}") from error
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        kinds = (f"{extents(part.shape)} of {str(part.dtype)[6:]}" for part in (one, two))
        if one.dtype == two.dtype:
            kinds = (extents(part.shape) for part in (one, two))
        raise SourceError(f"an image of {data.name} is {' for training and '.join(kinds)} for the test")


def _shaped(data: Data, channels: int, limit: int) -> Data:
    if channels and len(data.shape) != 3:
        raise SourceError(
            f"an image of {data.name} is {extents(data.shape)}, without an axis of channels; "
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
                dataset = Subset(dataset, _places(getattr(dataset, "targets", None), len(dataset), most))
            return Split(None, None, _Repeated(dataset, repeated) if repeated else dataset)
        if most and most < len(images):
            places = _places(labels, len(labels), most)
            images, labels = images[places], labels[places]
        if repeated:
            images = images.expand(-1, repeated, -1, -1)
        return Split(images.contiguous(), labels)

    return replace(data, train=one(data.train, limit), test=one(data.test, 0))


def _places(targets: Any, count: int, most: int) -> list[int]:
    """Which of ``count`` items are kept: the first ones, unless the targets lie class by class or sorted.

    The first ones would then be of one class, or the smallest.
    """
    try:
        values = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # none are known
        return list(range(most))
    if values.shape != (count,):
        return list(range(most))
    steps = values[1:].ne(values[:-1]).count_nonzero()
    kinds = len(torch.unique_consecutive(values.sort().values))
    together = 1 < kinds < count and int(steps) == kinds - 1
    ordered = torch.equal(values.sort().values, values) or torch.equal(
        values.sort(descending=True).values, values
    )
    return [place * count // most for place in range(most)] if together or ordered else list(range(most))


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
    found = import_extra("sklearn.datasets", "train", "the data digits").load_digits()
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
    """An array of bytes in LeCun's idx format (gzipped where the name ends in .gz); SourceError where it is not one."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise SourceError(f"{path.name} is not an idx file of bytes")
    count = raw[3]
    shape = struct.unpack(f">{count}I", raw[4 : 4 + 4 * count])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * count)
    if values.size != int(np.prod(shape)):
        raise SourceError(f"{path.name} holds {values.size} values, its header says {extents(shape)}")
    return values.reshape(shape).copy()  # torch takes no array that cannot be written to


def _torchvision() -> Any:
    return import_extra("torchvision.datasets", "torchvision", "this data")


def _cifar(kind: str, folder: str) -> Data:
    made = getattr(_torchvision(), kind.upper())
    parts = {}
    for key in ("train", "test"):
        try:
            found = made(folder or ".", train=key == "train", download=False)
        except RuntimeError as error:
            raise SourceError(f"{folder or '.'} has no {kind} ({error})") from error
        parts[key] = (found.data.transpose(0, 3, 1, 2), found.targets)
    return _normalised(kind, parts, flips=True)


def _folders(folder: Path) -> Data:
    _torchvision()
    from torchvision import transforms

    norm = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ways: dict[str, list[Any]] = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
        "val": [transforms.Resize(256), transforms.CenterCrop(224)],
    }
    found = {}
    for key, way in ways.items():
        if not (folder / key).is_dir():
            raise SourceError(f"{folder} has no folder {key!r}; images lie in train/CLASS/ and val/CLASS/")
        try:
            whole = transforms.Compose([*way, transforms.ToTensor(), norm])
            found[key] = _torchvision().ImageFolder(os.fspath(folder / key), whole)
        except FileNotFoundError as error:
            raise SourceError(f"{folder / key} holds no images of classes: {error}") from error
    classes = found["train"].classes
    if classes != found["val"].classes:  # labels are places in this list
        differ = sorted(set(classes) ^ set(found["val"].classes))
        raise SourceError(f"{folder}: train and val have other classes; only one of them has {differ[0]!r}")
    train, test = (Split(None, None, found[key]) for key in ("train", "val"))
    return Data(f"images:{folder}", train, test, len(classes), flips=True, augmented=True)


def find_function(name: str, what: str = "", raises: type[ElasticError] = SourceError) -> Any:
    """What ``package.module:function`` stands for; an error of the kind ``raises`` where it is not there."""
    try:
        return user_functions.find(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise raises(f"{what}{name} cannot be found: {error}") from error


def _from_function(name: str) -> Data:
    function = find_function(name)
    made = user_functions.call(function, name, SourceError, what="the data's function")
    try:
        train, test = (_split(part) for part in made)
    except Exception as error:  # a Dataset of the user's may raise anything
        message = one_line(error)
        raise SourceError(
            f"{name} returns a pair (train, test), each a Dataset or a pair (images, labels): "
            f"{message if isinstance(error, (TypeError, ValueError)) else f'{type(error).__name__}: {message}'}"
        ) from error
    labels = train.labels
    if labels is None:
        classes = len(getattr(train.dataset, "classes", ()))
    else:
        classes = 0 if labels.is_floating_point() or not labels.numel() else int(labels.max()) + 1
    return Data(name, train, test, classes)


def _split(part: Any) -> Split:
    if type(part) is Subset and type(part.dataset) is TensorDataset:  # as random_split makes them
        part = [tensor[list(part.indices)] for tensor in part.dataset.tensors]
    elif type(part) is TensorDataset:
        part = part.tensors
    if isinstance(part, (tuple, list)) and len(part) == 2:
        return Split(as_tensor(part[0], "the array of inputs"), as_tensor(part[1], "the array of targets"))
    if not isinstance(part, Sized):
        raise TypeError(f"{type(part).__name__} has no length")
    if not len(part):
        return Split(None, None, part)
    first, _ = read_item(part, 0)
    if type(part) not in (tuple, list) or first.nbytes * len(part) > _IN_MEMORY:
        return Split(None, None, part)
    images, labels = zip(*read_items(part, ((index, 0) for index in range(len(part)))), strict=True)
    return Split(torch.stack(images), torch.stack(labels))
