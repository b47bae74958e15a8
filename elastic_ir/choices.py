"""Words of which one is chosen: a ``Literal`` type says them once, for type checkers, checks and messages.

The types of several rooms are here; those of one room stand where they are used.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from elastic_ir.errors import PlanError

#: How a module is traced: by torch.fx, by torch.export, or by the first of the two that can.
Frontend: TypeAlias = Literal["auto", "fx", "export"]
#: What a network is trained by, as far as its first step goes.
Optimizer: TypeAlias = Literal["sgd", "adam"]
#: Where copies stand: behind the others as a group, or each right behind its source (Chen et al. 2021, section 3.1).
Order: TypeAlias = Literal["append", "interpolate"]
#: Which blocks go: the last ones, or some spread evenly (section 3.2).
Drop: TypeAlias = Literal["tail", "even"]


def either(words: Iterable[str]) -> str:
    """Words as a message lists them.

    >>> either(["tail"]), either(["tail", "even"]), either(["linear", "cosine", "step"])
    ('tail', 'tail or even', 'linear, cosine or step')
    """
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def words_of(kind: Any) -> tuple[str, ...]:
    """The words of a ``Literal``, also as a part of a union; an empty one, which stands for none, is left out.

    >>> words_of(Literal["tail", "even"] | int), words_of(str)
    (('tail', 'even'), ())
    """
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(word for part in get_args(kind) for word in words_of(part))
    return tuple(word for word in get_args(kind) if word) if get_origin(kind) is Literal else ()


def check_choice(name: str, value: object, kind: Any, raises: type[Exception] = PlanError) -> None:
    """Raise an error that names the words unless a value is one of those of a ``Literal`` type.

    >>> check_choice("order", "append", Literal["append", "interpolate"])
    """
    if value not in get_args(kind):
        raise raises(f"{name} is {either(words_of(kind))}, not {value!r}")
