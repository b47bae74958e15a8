"""What becomes of a checkpoint's entries when the depth of its network changes: copied, deleted, renamed, kept.

Entries beside the network follow it where they are about its tensors: the moments and groups of an optimizer by the
names of parameters in theirs, an average of the weights because it has the network's names and shapes, what a layer
keeps beside its tensors by the layer. Whatever else there is (counts of steps, schedulers, data loaders, other
networks) stays as it is. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from elastic_ir.checkpoints.dcp.read import of_optimizer, optimizer_roots, tables_of
from elastic_ir.checkpoints.names import parted
from elastic_ir.checkpoints.stacks import Stack, in_module_order
from elastic_ir.errors import EmitError
from elastic_ir.formats.dcp.folder import DcpSource, saved_at
from elastic_ir.formats.dcp.metadata import Entry, Key
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import number_of
from elastic_ir.tensors.lazy import TensorData

_PARAMS = "params"  #: the key of a group's parameters


@dataclass(frozen=True)
class Made:
    """An entry of what is written: under which name, and what it is."""

    name: str
    path: tuple[Key, ...]
    of: Entry  #: the entry that it is a copy of, or stands for
    source: DcpSource
    data: TensorData | None = None  #: where it is computed
    names: tuple[str, ...] | None = None  #: where it lists parameters, and they have changed

    @property
    def is_computed(self) -> bool:
        """Whether it is no copy of bytes."""
        return self.data is not None or self.names is not None


@dataclass
class Followed:
    """All entries of what is written, and what they were: keys of dictionaries, for a reader."""

    entries: list[Made] = field(default_factory=list)
    following: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)


def followed(graph: Graph, source: DcpSource) -> Followed:
    """Decide for every entry. Raises EmitError where an optimizer's state cannot follow."""
    entries = []
    targets: dict[str, list[str]] = {}
    for name, weight in graph.weights.items():
        whose = (source, *source.others)[weight.source]
        data = weight.storage.data
        computed = None if data is whose.tensors.get(weight.origin) else data
        entries.append(_renamed(whose.network[weight.origin], weight.origin, name, whose, computed))
        if not weight.source:
            targets.setdefault(weight.origin, []).append(name)
    found = beside(source, Stack.all_of(graph), targets)
    found.entries[:0] = entries
    names = [made.name for made in found.entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EmitError(f"{source.folder} would have two entries of the name {twice!r}; nothing is written")
    return found


def beside(source: DcpSource, stacks: Sequence[Stack], targets: Mapping[str, list[str]]) -> Followed:
    """The same for what lies beside the network; ``targets`` are the tensors that each of the network's has become."""
    found = Followed()
    _Beside(source, stacks, targets, found).follow()
    return found


def _renamed(
    entry: Entry, before: str, after: str, source: DcpSource, data: TensorData | None = None
) -> Made:
    """An entry under the name that follows where its own has ``before`` in it, at the end."""
    head = entry.name[: len(entry.name) - len(before)]
    return Made(head + after, _path_with(entry.path, before, after), entry, source, data)


def _path_with(path: Sequence[Key], before: str, after: str) -> tuple[Key, ...]:
    """Keys with another name in place of one, which may be a part of a key or several keys."""
    old, new = before.split("."), after.split(".")
    parts = [str(key).split(".") for key in path]
    flat = [part for key in parts for part in key]
    at = _last_run(flat, old)
    if at is None or len(old) != len(new):
        raise EmitError(f"the name {before!r} is not in the keys {'.'.join(flat)!r}; nothing is written")
    flat[at : at + len(old)] = new
    made: list[Key] = []
    for key, split in zip(path, parts, strict=True):
        text = ".".join(flat[: len(split)])
        del flat[: len(split)]
        made.append(int(text) if isinstance(key, int) else text)
    return tuple(made)


def _last_run(parts: Sequence[str], run: Sequence[str]) -> int | None:
    return next(
        (at for at in range(len(parts) - len(run), -1, -1) if list(parts[at : at + len(run)]) == list(run)),
        None,
    )


class _Beside:
    """The entries beside the network."""

    def __init__(
        self, source: DcpSource, stacks: Sequence[Stack], targets: Mapping[str, list[str]], found: Followed
    ) -> None:
        self.source, self.stacks, self.found = source, stacks, found
        #: for each name of a tensor, and path of a layer, those that it has become
        self.targets = dict(self._slots()) | {name: targets.get(name, []) for name in source.network}
        self.changed = any(stack.changed for stack in self.stacks)
        self.roots = optimizer_roots(source.metadata.entries)
        origins = {target: name for name, made in targets.items() for target in made}
        self.order = {
            name: number for number, name in enumerate(in_module_order(origins, list(source.network), stacks))
        }

    def _slots(self) -> Iterator[tuple[str, list[str]]]:
        for stack in self.stacks:
            places = stack.places()
            for number in range(stack.before):
                after = [
                    stack.series.name(stack.base + at)
                    for at, place in enumerate(places)
                    if place == (0, number)
                ]
                yield stack.series.name(stack.base + number), after

    def follow(self) -> None:
        """Add what becomes of each."""
        averages = self._averages()
        home = next(iter(self.source.network.values())).path[:-1]
        for entry in self.source.beside:
            inside = entry.path[len(home) :] if entry.path[: len(home)] == home else ()
            if of_optimizer(entry.path, self.roots):
                self.found.following.add(self._root_of(entry))
                self._optimizer(entry)
            elif entry.path[:-1] in averages:
                self.found.following.add(".".join(map(str, entry.path[:-1])) or entry.name)
                name = str(entry.path[-1])
                self._copies(entry, name if name in self.source.network else None)
            elif (layer := self._about(inside, anywhere=False)) is not None:
                self._copies(entry, layer)
            else:
                part = ".".join(map(str, parted(entry.path, home)))
                self.found.kept.add(part if len(home) > 1 else part.partition(".")[0])
                self._keep(entry)

    def _root_of(self, entry: Entry) -> str:
        at = next(at for at in range(len(entry.path)) if of_optimizer(entry.path[: at + 1], self.roots))
        return ".".join(map(str, entry.path[:at])) or str(entry.path[0])

    def _averages(self) -> set[tuple[Key, ...]]:
        """The dictionaries beside the network's that have all of its names, with their shapes."""
        shapes = {name: entry.shape for name, entry in self.source.network.items()}
        return {
            path
            for path, table in tables_of(self.source.beside).items()
            if shapes.items() <= {name: entry.shape for name, entry in table.items()}.items()
        }

    def _keep(self, entry: Entry) -> None:
        self.found.entries.append(Made(entry.name, entry.path, entry, self.source))

    def _copies(self, entry: Entry, name: str | None) -> None:
        """Add an entry for each that its tensor or layer has become; as it is where it is about neither."""
        if name is None:
            self._keep(entry)
            return
        for target in self.targets[name]:
            path = _path_with(entry.path, name, target)
            split = entry.name.split(".")
            at = _last_run(split, name.split("."))
            if at is None:
                raise EmitError(f"{entry.name!r} does not have the name {name!r} of its keys in it")
            split[at : at + name.count(".") + 1] = target.split(".")
            self.found.entries.append(Made(".".join(split), path, entry, self.source))

    def _about(self, path: Sequence[Key], anywhere: bool = True) -> str | None:
        """The tensor, else the layer, that keys name, or begin with; the longest where there are several."""
        parts = [part for key in path for part in str(key).split(".")]
        runs = (
            ".".join(parts[begin : begin + length])
            for length in range(len(parts), 0, -1)
            for begin in range(len(parts) - length + 1 if anywhere else 1)
        )
        return next((run for run in runs if run in self.targets), None)

    def _optimizer(self, entry: Entry) -> None:
        if self.source.others and self.changed:
            raise EmitError(
                f"{self.source.folder} has an optimizer's state ({entry.name}), and layers of another checkpoint come "
                "without theirs; write the weights alone, with -o NAME.safetensors"
            )
        numbers = entry.path[-1] == _PARAMS and entry.dtype is None
        if numbers:
            self._group(entry)
            return
        by_number = any(
            key == "state" and number_of(str(after)) is not None
            for key, after in zip(entry.path, entry.path[1:], strict=False)
        )
        if by_number and self.changed:
            raise EmitError(
                f"{self.source.folder} has an optimizer's state by numbers, not by names of parameters "
                f"({entry.name}); save it by torch.distributed.checkpoint.state_dict.get_optimizer_state_dict, or "
                "write the weights alone, with -o NAME.safetensors"
            )
        self._copies(entry, self._about(entry.path))

    def _group(self, entry: Entry) -> None:
        """A group's list of parameters, with those that its parameters have become."""
        place = entry.boxes[0].place
        held = (
            saved_at(self.source.folder, place, self.source.stamps[place.file], entry.name)
            if self.changed
            else None
        )
        names = [name for name in held if isinstance(name, str)] if isinstance(held, list) else []
        if not names:
            self._keep(entry)
            return
        after = sorted(
            {target for name in names for target in self.targets.get(name, [name])},
            key=lambda name: self.order.get(name, len(self.order)),
        )
        made = Made(entry.name, entry.path, entry, self.source)
        self.found.entries.append(replace(made, names=tuple(after)) if after != names else made)
