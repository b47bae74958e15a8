"""Packages that not everybody installs: how they are imported, and the one sentence where they are missing.

Some draw progress bars of their own, which :func:`without_bars` keeps out of what is printed here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

from elastic_ir.errors import SourceError, first_line


def import_extra(name: str, extra: str, what: str) -> Any:
    """A module of a package that the extra ``elastic-ir[extra]`` brings; ``what`` needs it.

    Raises SourceError: it is not installed, or its build does not fit that of torch.
    """
    return import_library(name, what, install(extra))


def import_library(name: str, what: str, remedy: str) -> Any:
    """As :func:`import_extra`, with something else to do about it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing(name, what, remedy, error) from error
    except RuntimeError as error:
        if "torchvision::" in str(error):  # also where the library in between has a name of its own
            raise SourceError(
                f"the installed torchvision does not fit the installed torch ({first_line(error)}); "
                "install a matching pair of builds, both for CPU or both for the same CUDA"
            ) from error
        raise


def missing(name: str, what: str, remedy: str, error: ImportError | None = None) -> SourceError:
    """The error for a package that cannot be imported; without an import it was not found.

    >>> str(missing("timm.models", "timm:resnet18", install("timm"), ImportError("No module named 'timm'")))
    "timm:resnet18 needs timm, which cannot be imported (No module named 'timm'); pip install 'elastic-ir[timm]'"
    """
    package = name.partition(".")[0]
    why = f"No module named {package!r}" if error is None else first_line(error)
    return SourceError(f"{what} needs {package}, which cannot be imported ({why}); {remedy}")


def install(extra: str) -> str:
    """What to type for an extra."""
    return f"pip install 'elastic-ir[{extra}]'"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """While the block runs, Hugging Face's libraries draw no bars."""
    again = []
    if importlib.util.find_spec("huggingface_hub") is not None:
        hub = importlib.import_module("huggingface_hub.utils.tqdm")
        if not hub.are_progress_bars_disabled():
            hub.disable_progress_bars()
            again.append(hub.enable_progress_bars)
    logging = sys.modules.get(
        "transformers.utils.logging"
    )  # a switch of its own, which it reads off the hub's once
    if logging is not None and logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
        again.append(logging.enable_progress_bar)
    try:
        yield
    finally:
        for enable in again:
            enable()
