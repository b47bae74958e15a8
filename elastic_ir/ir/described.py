"""Networks as files describe them: what makes no sense in one is the file's fault, and reported as such.

A description may be of the right form and still say what no network can do: a convolution whose padding is a name, an
operand that is another's. What it makes fail far from its reading (in discovery, in a pass, in torch when it is run)
is reported where the file is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from elastic_ir.errors import ElasticError, SourceError

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph


@contextlib.contextmanager
def read_from(file: str) -> Iterator[None]:
    """Around the reading of a network from a file of that name: SourceError in place of what it makes fail."""
    try:
        yield
    except ElasticError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise damaged(file, error) from error


@contextlib.contextmanager
def described(graph: Graph) -> Iterator[None]:
    """Around work on a graph: SourceError in place of what a file's description makes fail, in the file's name."""
    with read_from(graph.info.file) if graph.info.file else contextlib.nullcontext():
        yield


def damaged(file: str, error: Exception) -> SourceError:
    """What a file's network made fail, in one line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return SourceError(
        f"{file} holds a network that cannot be followed ({type(error).__name__}: {lines[0][:200]}); the file is "
        "damaged, or its classes are of another version than those installed here"
    )
