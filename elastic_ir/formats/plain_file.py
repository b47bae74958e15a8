"""Files of ``torch.save`` that torch itself loads, as tensors and plain data, because all of it is written again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError, UntrustedError, first_line
from elastic_ir.formats.bin import read_saved
from elastic_ir.formats.files import opened
from elastic_ir.formats.torch_zip import archive_of


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
        more = (
            f"{path} holds more than tensors and plain data, and cannot be written again as it is "
            f"({first_line(error)[:120]})"
        )
        raise SourceError(f"{_damage(path) or more}; {advice}") from error


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
