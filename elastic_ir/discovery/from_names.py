"""Groups of a container read from names and shapes alone, for a checkpoint without its network."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping

from elastic_ir.discovery.levels import Levels, layer_shapes, levels_of
from elastic_ir.discovery.parts import Group, Part, containers, form_of, kin, module_tree, relative_weights
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.numbering import natural_key
from elastic_ir.ir.structure import Child, Container
from elastic_ir.tensors.weights import applied_shape, is_packed, is_table, spans_matrix

_LONGEST_ROW = 12  #: blocks of a row that is looked for again behind itself


class NameReader:
    """The counterpart of ``GraphReader`` where there are no nodes; what it cannot see it leaves open."""

    form = "names"

    def __init__(self, graph: Graph, every: bool = False) -> None:
        """``every`` takes all matrices but tables for layers, where there are no others."""
        self.graph = graph
        self.plain = not every  #: whether what its layers are is known
        self.tree = module_tree(graph)
        names = list(graph.weights)
        self.layer_names = {
            name
            for name, weight in graph.weights.items()
            if weight.layer or (every and spans_matrix(weight.shape) and not is_table(name))
        }
        layers = [name for name in names if name in self.layer_names]
        #: safetensors files come sorted by name (within a dtype); then numbers show more of the order than letters
        self.sorted = layers == sorted(layers)
        if self.sorted:
            names.sort(key=lambda name: [natural_key(part) for part in name.split(".")])
        self.order = {name: index for index, name in enumerate(names)}
        self._listed: dict[Part, list[tuple[Container, list[Part]]]] = {}
        self.paired: dict[Container, tuple[str, str]] = {}  #: names show no pairs
        self._levels: dict[Container, Levels] = {}
        self._joining: dict[Container, list[tuple[Container, list[Part]]]] | None = None

    def containers(self, part: Part) -> list[tuple[Container, list[Part]]]:
        """The containers that a part is or holds, with their children in order; the same objects every time."""
        if part not in self._listed:
            self._listed[part] = list(containers(part, self.graph.modules))
            levels = levels_of(part)
            if levels is not None:
                self._listed[part].append(levels.lead)
                self._levels[levels.containers[0]] = levels
        return self._listed[part]

    def bundle(self, container: Container) -> tuple[Container, ...]:
        """A container, and those of norms that advance with it as far as names show; all of a recurrent module."""
        levels = self._levels.get(container)
        if levels is not None:
            return levels.containers
        return (container, *(norms for norms, _ in self._joined().get(container, ())))

    def _joined(self) -> dict[Container, list[tuple[Container, list[Part]]]]:
        """By containers of layers those of norms that stand beside them, as many and of their channels.

        A list that fits two lists of layers joins none, nor one that stands beside blocks with norms of their own (it
        may belong to their results). Lists of layers are never joined: numbers that agree do not show which advance
        together (two towers of equal depth are numbered alike).
        """
        if self._joining is None:
            self._joining = {}
            beside: dict[str, list[tuple[Container, list[Part]]]] = {}
            for part in self.tree.walk():
                for container, parts in self.containers(part):
                    owner = container.path.rpartition(".")[0] if container.native else container.path
                    beside.setdefault(owner, []).append((container, parts))
            for lists in beside.values():
                layered = [one for one in lists if all(map(self._bare, one[1]))]
                for container, parts in lists if layered else ():
                    if not all(part.weights for part in parts) or any(map(self._layered, parts)):
                        continue
                    fitting = [box for box, layers in layered if self._fit(parts, layers)]
                    if len(fitting) == 1:
                        self._joining.setdefault(fitting[0], []).append((container, parts))
            everywhere = {one[0].series.head: one for lists in beside.values() for one in lists}
            for heads in self.graph.info.together:
                lead, *others = (everywhere[head] for head in heads)
                self._joining[lead[0]] = others
        return self._joining

    def _layered(self, part: Part) -> bool:
        return any(name in self.layer_names for name in part.weights)

    def _bare(self, part: Part) -> bool:
        """Whether a part holds layers, with their biases, and nothing else."""
        others = [name for name in part.weights if name not in self.layer_names]
        return self._layered(part) and all(name.rpartition(".")[2] == "bias" for name in others)

    def _fit(self, norms: list[Part], layers: list[Part]) -> bool:
        """Whether there is a norm for each layer, over its channels in or out."""
        return len(norms) == len(layers) and all(
            (channels := self.channels(Group([layer]))) is not None
            and all(
                self.graph.weights[name].shape in ((), *((count,) for count in channels))
                for name in norm.weights
            )
            for norm, layer in zip(norms, layers, strict=True)
        )

    def follows(self, container: Container) -> bool:
        """Whether it advances with another, as is known from elsewhere; what joins by names holds norms alone."""
        head = container.series.head
        return any(head in heads[1:] for heads in self.graph.info.together)

    def groups(self, container: Container, parts: list[Part]) -> list[Group]:
        """The groups of a container; a gap in the numbers wider than the step indicates a pool."""
        levels = self._levels.get(container)
        groups = levels.groups() if levels is not None else self._around_layers(container, parts)
        for index, group in enumerate(groups):
            group.weights = relative_weights(group.parts, self.graph)
            group.form = form_of(group)
            group.linked = index > 0 and not group.boundary
            exact = hashlib.sha256(repr(sorted(group.weights.items())).encode()).hexdigest()
            # names and the extents of kernels: a convolution of 11 by 11 is of another kind than one of 3 by 3
            kernels = sorted((name, applied_shape(name, shape)[2:]) for name, shape in group.weights.items())
            group.hashes = exact, hashlib.sha256(repr(kernels).encode()).hexdigest()
        kept = _keeping(groups)
        for group in groups:
            # neighbours of one width chain, so what goes in is what comes out; else the channels of its layers decide
            channels = self.channels(group)
            same = group.signature in kept
            group.preserving = same or (channels is not None and channels[0] == channels[1])
        if self.sorted:
            around = zip([None, *groups], groups, [*groups[1:], None], strict=False)
            torn = [one for before, one, behind in around if not _meets(before, one, behind)]
            for group in torn:
                group.preserving = group.signature in kept
        return groups

    def _around_layers(self, container: Container, parts: list[Part]) -> list[Group]:
        layers = [
            index for index, part in enumerate(parts) if any(n in self.layer_names for n in part.weights)
        ]
        if not layers:
            return []
        starts = layers
        first = next(index for index, part in enumerate(parts) if part.weights)
        if first < layers[0]:  # it opens with a norm: each layer closes its group (pre-activation)
            lead = layers[0] - first
            starts = [index - lead for index in layers]
            if any(later - earlier <= lead for earlier, later in itertools.pairwise(layers)):
                starts = layers
        steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
        step = min(steps) if steps else len(parts) - starts[0]
        while len(parts) < starts[-1] + step:  # the last group's activation has no weights and so no name
            path = container.child_path(len(parts))
            container.children.append(Child(path, path))
            parts.append(Part(path, path.rpartition(".")[2]))
        groups = []
        for index, start in enumerate(starts):
            groups.append(Group(parts[start : start + step], boundary=index > 0 and steps[index - 1] > step))
            groups[-1].parts += [norms[start] for _, norms in self._joined().get(container, ())]
        return groups

    def channels(self, group: Group) -> tuple[int, int] | None:
        """Channels into its first layer and out of its last, in the order of the state dict; None for packed ones."""
        names = [n for part in group.parts for n in part.weights if n in self.layer_names]
        held = [self.graph.weights[name] for name in names]
        if any(not weight.prunable and is_packed(weight.name, weight.shape, weight.dtype) for weight in held):
            return None
        layers = layer_shapes(names, self.graph)
        # one channel in and one out is a filter along the channels, which makes a gate (ECA)
        layers = [shape for shape in layers if shape[:2] != (1, 1)] or layers
        if not layers:
            return None
        return in_channels(layers[0]), layers[-1][0]

    def on_trunk(self, groups: list[Group]) -> bool:
        """Names do not show shortcuts."""
        return True

    def lends(self, groups: list[Group]) -> bool:
        """Names do not show who reads a weight."""
        return False

    def position(self, group: Group) -> int:
        return min(self.order[name] for part in group.parts for name in part.weights)

    def leads(self, left: Group, right: Group) -> bool:
        """Whether one group has as many channels out as another has in."""
        before, after = self.channels(left), self.channels(right)
        return before is not None and after is not None and before[1] == after[0]

    def between(self, left: Group, right: Group) -> list[Node]:
        return []


def _channels_out(shape: tuple[int, ...]) -> int:
    return shape[0]


def in_channels(shape: tuple[int, ...]) -> int:
    """Input channels of a weight; a depthwise convolution has as many as output channels."""
    return shape[0] if len(shape) > 2 and shape[1] == 1 else shape[1]


def _keeping(groups: list[Group]) -> set[str]:
    """The signatures of blocks that give out the width that they take in, alone or with those that repeat with them.

    Neighbours of one width do, and what stands between two of these that are equal (an attention after every seventh
    recurrent layer, heads that are wider in every sixth). So does a row of blocks that is repeated, whatever is between
    two of them.
    """
    hashes = [group.signature for group in groups]
    kept: set[str] = set()
    for one, other in itertools.pairwise(groups):
        if _of_one_width(one, other):
            kept |= {one.signature, other.signature}
    around = [
        inner
        for before, inner, after in zip(hashes, hashes[1:], hashes[2:], strict=False)
        if before == after in kept
    ]
    kept.update(around)
    for count in range(2, _LONGEST_ROW + 1):
        for first in range(len(hashes) - 2 * count + 1):
            row = hashes[first : first + count]
            if row == hashes[first + count : first + 2 * count]:
                kept.update(row)
    return kept


def _meets(before: Group | None, group: Group, behind: Group | None) -> bool:
    """Whether a block takes in and gives out some width that the one before it gives and the one behind it takes.

    Of names in the order of the alphabet a block's own do not show what runs last: a projection may stand behind all
    else, as in Hiera's first block of each stage. A neighbour's layers of equal name show which of its widths is meant.
    """
    layers = _matrices(group)
    takes, gives = set(map(in_channels, layers.values())), set(map(_channels_out, layers.values()))
    if before is not None:
        takes &= _in_common(layers, _matrices(before), _channels_out)
    if behind is not None:
        gives &= _in_common(layers, _matrices(behind), in_channels)
    return len(layers) < 2 or not takes.isdisjoint(gives)


def _matrices(group: Group) -> dict[str, tuple[int, ...]]:
    return {name: applied_shape(name, shape) for name, shape in group.weights.items() if len(shape) > 1}


def _in_common(
    mine: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, tuple[int, ...]],
    channels: Callable[[tuple[int, ...]], int],
) -> set[int]:
    """The channels of a neighbour's layers: where some have names of one's own layers, of those that have as many."""
    common = {name for name in theirs if name in mine and channels(mine[name]) == channels(theirs[name])}
    return {channels(theirs[name]) for name in (common if mine.keys() & theirs.keys() else theirs)}


def _of_one_width(one: Group, other: Group) -> bool:
    """Whether blocks are equal, or of one kind with equal shapes of what they have in common, a layer's among it."""
    if one.signature == other.signature:
        return True
    common = one.weights.keys() & other.weights.keys()
    return (
        kin(one.form, other.form)
        and any(len(one.weights[name]) > 1 for name in common)
        and all(one.weights[name] == other.weights[name] for name in common)
    )
