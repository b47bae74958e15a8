"""Where an adapter's tensors lie: in which layer of which of its base's stacks, by the ends of their paths. No torch.

An adapter names modules, a checkpoint names tensors, and what stands before the layers may differ: GPT-2's files have
``h.0.attn``, its module ``transformer.h.0.attn``. So a path before a number is the stack's whose path ends like it, and
of several the one that shares most words with it. What that leaves open is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from elastic_ir.checkpoints.adapters.change import Change
from elastic_ir.checkpoints.adapters.roles import ROLES
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import SourceError
from elastic_ir.ir.numbering import number_of

#: What PEFT puts before the names of a model's modules.
ROOT = "base_model.model."
#: Parts of a path that PEFT puts between a module and what it holds.
_WRAPPERS = ("base_layer", "modules_to_save", "original_module")


@dataclass
class Places:
    """The tensors of an adapter by the layers that they lie in, and those that lie beside the layers."""

    #: by the stack's place among the base's and the layer's number, counted from 0: end of name, name
    layers: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)  #: by the stack: its path here
    beside: list[str] = field(default_factory=list)

    def series(self, stack: int, change: Change) -> Stack:
        """A stack under its path here; its layers from other sources than the base are nobody's."""
        found = change.stacks[stack]
        order = tuple(-1 if source else number for source, number in found.places())
        return replace(found, path=self.heads[stack], order=order, taken=())


def places_in(names: Iterable[str], change: Change, where: str) -> Places:
    """The places of an adapter's tensors. Raises SourceError where the adapter is none of that base."""
    found = Places()
    modules = {module for name in change.before for module in _modules(name)}
    paths = {
        ".".join(parts[:end])
        for parts in (n.split(".") for n in change.before)
        for end in range(1, len(parts))
    }
    for name in names:
        best = _best(name, change.stacks, paths)
        if best is None:
            _check_beside(name, modules, change, where)
            found.beside.append(name)
            continue
        stack, head, number = best
        series = replace(change.stacks[stack], path=head).series
        held = found.layers.setdefault((stack, number), {})
        held[name[len(series.name(number + change.stacks[stack].base)) + 1 :]] = name
        if found.heads.setdefault(stack, head) != head:
            raise SourceError(
                f"{where}: {found.heads[stack]} and {head} both end like {change.stacks[stack].label} of "
                f"{change.base}, so it is not known which of them that is"
            )
        if number >= change.stacks[stack].before + change.stacks[stack].tail or number < 0:
            raise SourceError(
                f"{where} has tensors of layer {number + change.stacks[stack].base} at {head} ({name}), and "
                f"{change.base} has {change.stacks[stack].before + change.stacks[stack].tail} layers there; the "
                "adapter belongs to another model"
            )
    return found


def _best(name: str, stacks: Sequence[Stack], paths: Set[str]) -> tuple[int, str, int] | None:
    """The stack, its path here and the layer's number for a tensor; None for one beside the layers.

    ``paths`` are those of the base's modules: of a list that is one of them the path is no other stack's, however alike
    they end.
    """
    parts = name.split(".")
    found: dict[tuple[int, int, int], list[tuple[int, str, int]]] = {}
    for at in range(len(parts)):
        if not any(char.isdigit() for char in parts[at]):
            continue
        head = ".".join(parts[:at])
        bare = f"{head}.".removeprefix(ROOT).rstrip(".")
        for place, stack in enumerate(stacks):
            if bare != stack.path and bare in paths:
                continue
            number = replace(stack, path=head).series.number(name)
            own, words = stack.path.split("."), parts[:at]
            alike = _alike(own, words)
            if number is None or not (alike or (not stack.path and head in ("", ROOT[:-1]))):
                continue
            shared = sum((Counter(own) & Counter(words)).values())
            found.setdefault((shared, alike, -at), []).append((place, head, number - stack.base))
    if not found:
        return None
    best = found[max(found)]
    if len(best) > 1 and len({(stacks[place].order, stacks[place].taken) for place, _, _ in best}) > 1:
        raise SourceError(
            f"{name} may lie in {' or in '.join(stacks[place].label for place, _, _ in best)}, which have become "
            "different"
        )
    return best[0]


def _alike(own: Sequence[str], words: Sequence[str]) -> int:
    """How many of the last parts of two paths are the same."""
    same = 0
    for one, other in zip(reversed(own), reversed(words), strict=False):
        if one != other:
            break
        same += 1
    return same


def _check_beside(name: str, modules: set[str], change: Change, where: str) -> None:
    """SourceError for an adapter's tensor of a numbered module that the base does not have."""
    parts = plain(name).removeprefix(ROOT).split(".")
    numbered = _modules(".".join(parts))
    if not numbered or not any(part in ROLES for part in parts):
        return
    ends = (one.split(".")[at:] for one in numbered for at in range(len(one.split("."))))
    if not any(".".join(end) in modules for end in ends):
        raise SourceError(
            f"{where}: {name} lies in no layer of {change.base}; the adapter belongs to another model"
        )


def _modules(name: str) -> list[str]:
    """The modules around what a name means, the outermost first, that have a name with a number in it."""
    parts = name.split(".")
    return [
        ".".join(parts[:end])
        for end in range(1, len(parts))
        if any(number_of(part) is not None for part in parts[:end])
    ]


def plain(name: str) -> str:
    """A name without what PEFT puts between a module and its tensors."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def by_layer(stack: Stack, names: Iterable[str]) -> Mapping[int, dict[str, str]]:
    """The tensors of a stack's layers, by number from 0: the end of the name inside the layer, the name."""
    series, found = stack.series, dict[int, dict[str, str]]()
    for name in names:
        number = series.number(name)
        if number is not None:
            found.setdefault(number - stack.base, {})[name[len(series.name(number)) + 1 :]] = name
    return found
