"""Stand-ins: what a file describes of classes that this process may not build; data, and no code.

A network of one's own is read where its class is not at hand, changed, and written again. What the file states of its
modules is carried through as a tree of stand-ins, which emission lays out as it would the modules themselves; so a
later reader who trusts the class gets what it would have got from the class all along.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: The attribute of a stand-in module that holds its class's name, ``package.module:Class``.
MARK = "_stands_for"
#: The attribute of a root that holds what else its file stated: by which name the script that defines ``__main__``'s
#: classes is imported, and whether the network is made of a configuration, as transformers does it.
TOLD = "_told"
#: The class of what was a GraphModule when it was written.
GRAPH_MODULE = "torch.fx.graph_module:GraphModule"


@dataclass(frozen=True)
class Unread:
    """A value in its described form (a function, a class, an enum's member), written again as it was read."""

    item: Any


class Instance:
    """The attributes of an object whose class is not at hand."""

    __slots__ = ("__dict__", MARK)

    def __init__(self, stands_for: str, attributes: dict[str, Any]) -> None:
        setattr(self, MARK, stands_for)
        vars(self).update(attributes)


class Configuration(Instance):
    """A configuration of transformers whose class is not at hand."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Its content, as the class's own method gives it."""
        return copy.deepcopy(vars(self))


@functools.cache
def _module_class() -> type[nn.Module]:
    from torch import nn

    class StandIn(nn.Module):
        """A module without a forward: parameters, buffers, children and attributes under their names."""

    return StandIn


def stand_in(stands_for: str) -> nn.Module:
    """An empty module that stands for one of a class that is not at hand."""
    made = _module_class()()
    vars(made)[MARK] = stands_for
    return made


def class_of(item: Any) -> str:
    """The class of a module or an object, ``package.module:Class``; of a stand-in the class that it stands for."""
    if isinstance(item, Instance):
        return str(getattr(item, MARK))
    kind = type(item)
    if kind is _module_class():
        return str(vars(item)[MARK])
    return f"{kind.__module__}:{kind.__qualname__}"
