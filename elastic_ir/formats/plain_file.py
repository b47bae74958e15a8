"""Files of ``torch.save`` as tensors and plain data, which all of it has to be, because all of it is written again.

torch loads most of them itself. What it does not know (numpy's random state, a clock), the unpickler of
:mod:`elastic_ir.formats.pickles.module` makes, and then only what it makes exactly as it was counts.
"""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError, UntrustedError, first_line
from elastic_ir.formats.bin import read_saved
from elastic_ir.formats.files import opened
from elastic_ir.formats.torch_zip import archive_of, places_of


def load_plain(path: Path, advice: str) -> Any:
    """What a file holds, its tensors mapped from it; nothing in it is run.

    Raises SourceError, one line that ends with the ``advice``: missing, empty, truncated, damaged, or a file of more
    than tensors and plain data.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (MemoryError, SourceError):
        raise
    except Exception as error:  # on damaged bytes an unpickler raises nearly anything
        damage = _damage(path)
        found = _guarded(path) if damage is None else None
        if found is not None:
            return found
        more = (
            f"{path} holds more than tensors and plain data, and cannot be written again as it is "
            f"({first_line(error)[:120]})"
        )
        raise SourceError(f"{damage or more}; {advice}") from error


def _guarded(path: Path) -> Any:
    """What our own unpickler makes of a file; None where it refuses that, or would write any of it in another way."""
    import torch

    from elastic_ir.formats.pickles.module import restricted_pickle

    records = None
    try:
        if zipfile.is_zipfile(path):
            with opened(path, "checkpoint") as file:
                records = {name: place.size for name, place in places_of(file, str(path)).items()}
        reader = restricted_pickle((), path.name, path.stat().st_size if records is None else records)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to users of torch.load
            found = torch.load(
                path, map_location="cpu", weights_only=False, mmap=records is not None, pickle_module=reader
            )
    except MemoryError:
        raise
    except Exception:  # as above
        return None
    return found if _is_plain(found) else None


def _is_plain(found: Any) -> bool:
    """Whether all that a tree holds, tensors aside, is of types whose values are all that there is to them."""
    import datetime

    import numpy as np
    import torch

    tables = (dict, OrderedDict, defaultdict)
    known = (
        str, int, float, bool, complex, bytes, type(None), datetime.timedelta, torch.torch_version.TorchVersion,
        torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device, np.ndarray,
    )  # fmt: skip
    waiting, seen = [found], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if type(item) in tables:
            waiting += [*item, *item.values()]
        elif type(item) in (list, tuple, set):
            waiting += item
        elif type(item) not in known and not isinstance(item, np.generic):
            return False
    return True


def _damage(path: Path) -> str | None:
    """What our own reader finds wrong with a file that torch refuses; None where it is whole."""
    try:
        with opened(path, "checkpoint") as file:
            read_saved(file, path, archive_of(file, str(path)))
    except UntrustedError:
        return None
    except SourceError as error:
        return str(error)
    return None
