"""Networks as files describe them: what makes no sense in one is the file's fault, and told as that.

A description may be of the right form and still say what no network can do: a convolution whose padding is a name, an
operand that is another's. What it makes fail far from its reading (in discovery, in a pass, in torch when it is run)
is told where the file is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from elastic_ir.errors import ElasticError, SourceError

if TYPE_CHECKING:
    from elastic_ir.graph import Graph

FILE = "file"  #: key in a graph's metadata: the name of the file that described its network


@contextlib.contextmanager
def described(graph: Graph) -> Iterator[None]:
    """Around work on a graph: SourceError in place of what a file's description makes fail, in the file's name."""
    try:
        yield
    except ElasticError:
        raise
    except (Exception, RecursionError) as error:
        if FILE not in graph.metadata or isinstance(error, OSError):
            raise
        raise damaged(str(graph.metadata[FILE]), error) from error


def damaged(file: str, error: Exception) -> SourceError:
    """What a file's description of a network made fail, in one line."""
    said = str(error).strip().splitlines() or ["no message"]
    return SourceError(
        f"{file} describes a network that cannot be followed ({type(error).__name__}: {said[0][:200]}); "
        "it is damaged, or was not written by ElasticIR"
    )
