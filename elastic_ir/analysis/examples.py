"""Labelled examples from a file, for what a command line has to be shown: ``.npz`` or ``.safetensors``.

The file holds ``inputs``, [examples, ...], and ``labels``, class numbers [examples].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import SourceError
from elastic_ir.formats.registry import SAFETENSORS
from elastic_ir.formats.safetensors import tensors_of_file

if TYPE_CHECKING:
    import torch

_NAMES = ("inputs", "labels")


def read_batches(path: str, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The examples of a file in its order, in batches; the last one is smaller. No pickle is read.

    Raises SourceError for a file that cannot be read, or does not hold ``inputs`` and as many ``labels``.
    """
    import numpy as np
    import torch

    file = Path(path)
    if batch < 1:
        raise SourceError(f"batch={batch}: a batch holds one example or more")
    if not file.is_file():
        raise SourceError(f"{path} is no file; data=FILE names a .npz or .safetensors file")
    readers = {".npz": _npz, SAFETENSORS.suffixes[0]: _safetensors}
    if file.suffix.lower() not in readers:
        raise SourceError(f"{file.name}: data is read from .npz and .safetensors files")
    try:
        found = readers[file.suffix.lower()](file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file.name} is no readable {file.suffix} file ({error})") from error
    missing = [name for name in _NAMES if name not in found]
    if missing:
        raise SourceError(
            f"{file.name} holds no {missing[0]!r} but {', '.join(map(repr, found)) or 'nothing'}; "
            "call the examples 'inputs' and their class numbers 'labels'"
        )
    x, y = found["inputs"], found["labels"]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise SourceError(f"{file.name}: the labels are {y.dtype}{list(y.shape)}, not a row of class numbers")
    if not x.ndim or len(x) != len(y) or not len(x):
        raise SourceError(f"{file.name}: {len(y)} labels do not fit inputs of {list(x.shape)}")
    if np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float32)
    inputs, labels = torch.from_numpy(np.array(x)), torch.from_numpy(y.astype(np.int64))
    return [(inputs[at : at + batch], labels[at : at + batch]) for at in range(0, len(labels), batch)]


def _npz(file: Path) -> Mapping[str, Any]:
    import zipfile

    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


def _safetensors(file: Path) -> Mapping[str, Any]:
    """The arrays of a file; TypeError for a dtype that numpy has not."""
    return {name: tensor.numpy() for name, tensor in tensors_of_file(file).items()}
