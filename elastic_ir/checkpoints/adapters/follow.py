"""An adapter as its base has become: each layer has the tensors of the layer that it was made from. No torch here.

A layer that is gone takes its tensors along, one that had none gets none, and a layer of another network has none.
Where a copy's module was multiplied, so is what the adapter adds to it (:mod:`elastic_ir.checkpoints.adapters.roles`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from elastic_ir.checkpoints.adapters.change import Change
from elastic_ir.checkpoints.adapters.places import ROOT, Places, by_layer, places_in, plain
from elastic_ir.checkpoints.adapters.prefixes import KINDS, TENSOR, prefix_gathering
from elastic_ir.checkpoints.adapters.read import Adapter
from elastic_ir.checkpoints.adapters.roles import ROLES, SHARED, factor_of_role, refuse_kind
from elastic_ir.checkpoints.adapters.settings import Modules, settings_followed
from elastic_ir.checkpoints.record import Origin
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG
from elastic_ir.formats.model_folder import label_of
from elastic_ir.ir.numbering import natural_key
from elastic_ir.tensors.arrays import FLOATS
from elastic_ir.tensors.gathered import Gathered
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Scaled, Zeros

#: The two factors of what LoRA adds to a matrix.
_FACTORS = ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class FollowedAdapter:
    """An adapter for a changed base."""

    tensors: Mapping[str, TensorData]
    config: Mapping[str, Any]
    lineage: Mapping[str, Origin]  #: of each tensor, in the adapter that it was
    layers: int  #: layers that have tensors of it
    notes: tuple[str, ...]  #: entries of the settings that have another form now


def follow_adapter(
    adapter: Adapter, change: Change, base: str, revision: str | None = None
) -> FollowedAdapter:
    """The adapter for what its base has become, under whose name ``base`` its settings look for that then.

    ``revision`` is that of a base on the hub.

    Raises SourceError where the adapter does not belong to the base, PlanError where it cannot follow.
    """
    where = label_of(adapter.folder)
    refuse_kind(adapter.kind, adapter.config, where)
    places = places_in(adapter.tensors, change, where)
    _check_beside(places, change, where)
    carried = _Carried(adapter, change, places)
    for place in places.heads:
        carried.stack(place)
    if adapter.kind in KINDS:
        gathering = prefix_gathering(adapter, change, where)
        carried.lineage[TENSOR] = Origin(TENSOR, gathering=gathering)
        carried.layers = len(gathering.entries)
    lineage = {name: carried.lineage[name] for name in sorted(carried.lineage, key=natural_key)}
    if not lineage:
        raise PlanError(f"{where}: none of the layers that have tensors of it is left in the changed model")
    stacks = [_bare(places.series(place, change)) for place in places.heads]
    modules, names = _modules(change, places, sorted(carried.adapted, key=natural_key))
    config, notes = settings_followed(adapter.config, stacks, names, modules)
    _count_layers(config, change)
    config["base_model_name_or_path"] = base
    if revision is not None or (base != adapter.base and config.get("revision") is not None):
        config["revision"] = revision  # the one that it had is of the earlier base
    tensors = {name: _computed(adapter.tensors[origin.name], origin) for name, origin in lineage.items()}
    return FollowedAdapter(tensors, config, lineage, carried.layers, tuple(notes))


class _Carried:
    """What of an adapter there is in the changed base: tensors with their origins, and the modules that have some."""

    def __init__(self, adapter: Adapter, change: Change, places: Places) -> None:
        self.adapter, self.change, self.places = adapter, change, places
        self.lineage = {name: Origin(name) for name in places.beside}
        self.adapted = {module for name in places.beside if (module := _adapted_module(name))}
        self.layers = 0

    def stack(self, place: int) -> None:
        """Add the tensors of a stack's layers, as they are now."""
        stack = self.places.series(place, self.change)
        held = by_layer(self.change.stacks[place], self.change.tensors)
        for at, source in enumerate(stack.sources):
            tensors, own = self.places.layers.get((place, source), {}), held.get(at, {})
            self.layers += bool(tensors)
            layer = _Layer({rest: self.change.origins[name].scale for rest, name in own.items()})
            path = stack.series.name(at + stack.base)
            for rest, name in tensors.items():
                module, role = layer.split(plain(rest))
                if role and module:
                    self.adapted.add(f"{path}.{module}".removeprefix(ROOT))
                    self._check_shape(rest, own.get(f"{module}.weight"), tensors)
                self.lineage[f"{path}.{rest}"] = Origin(
                    name, 0, layer.factor(module, role, plain(rest), name)
                )

    def _check_shape(self, rest: str, base: str | None, tensors: Mapping[str, str]) -> None:
        """SourceError where the two factors of LoRA do not fit the matrix that their product is added to."""
        end = f"{rest.removesuffix(_FACTORS[0])}{_FACTORS[1]}"
        if base is None or not rest.endswith(_FACTORS[0]) or end not in tensors:
            return
        matrix = self.change.tensors[base]
        one, two = (self.adapter.tensors[tensors[name]].shape for name in (rest, end))
        if matrix.dtype not in FLOATS or not len(matrix.shape) == len(one) == len(two) == 2:
            return
        if sorted((one[1], two[0])) != sorted(matrix.shape):
            raise SourceError(
                f"{label_of(self.adapter.folder)}: {tensors[rest]} {list(one)} and {tensors[end]} {list(two)} do not "
                f"fit {base} {list(matrix.shape)}; the adapter belongs to another model than {self.change.base}"
            )


@dataclass(frozen=True)
class _Layer:
    """A layer of the changed base: by the ends of its tensors' names, what each was multiplied by."""

    scales: Mapping[str, float | None]
    modules: dict[str, list[str]] = field(
        default_factory=dict
    )  #: by module: the ends of the names of its tensors

    def __post_init__(self) -> None:
        for rest in self.scales:
            module, _, leaf = rest.rpartition(".")
            self.modules.setdefault(module, []).append(leaf)

    def split(self, rest: str) -> tuple[str, str]:
        """The module that a tensor of the adapter belongs to, and its role; none for a copy of the base's own."""
        parts = rest.split(".")
        role = next((part for part in reversed(parts) if part in ROLES), "")
        if role:
            return ".".join(parts[: parts.index(role)]), role
        if rest in self.scales:
            return rest.rpartition(".")[0], ""
        ends = [end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in self.modules]
        return (
            (".".join(parts[: ends[0]]), parts[ends[0]]) if ends and ends[0] < len(parts) else ("", parts[-1])
        )

    def factor(self, module: str, role: str, rest: str, name: str) -> float | None:
        """What a tensor of the adapter is multiplied by."""
        if not any(scale is not None for scale in self.scales.values()):
            return None
        if not role:
            return self.scales.get(rest)
        leaves = self.modules.get(module, [])
        bias = [leaf for leaf in leaves if leaf == rest.rpartition(".")[2] == "bias"]
        chosen = bias or [leaf for leaf in leaves if leaf != "bias"]
        found = {self.scales[f"{module}.{leaf}".lstrip(".")] for leaf in chosen}
        if len(found) != 1:
            raise PlanError(
                f"{name}: a copy of its layer was multiplied, and how its module was is not known from the names of "
                f"its tensors ({', '.join(leaves) or 'none'})"
            )
        factor = found.pop()
        return factor if factor is None else factor_of_role(role, factor, name)


def _computed(data: TensorData, origin: Origin) -> TensorData:
    if origin.gathering is not None:
        data = Gathered(data, origin.gathering)
    if origin.scale is None:
        return data
    return Scaled(data, origin.scale) if origin.scale else Zeros(data.shape, data.dtype)


# -- does it belong to the base ------------------------------------------------------------------------------------


def _check_beside(places: Places, change: Change, where: str) -> None:
    """PlanError for what lies in no layer and may concern some all the same."""
    gathered = [
        name.split(".")[-2:-1] for name, origin in change.origins.items() if origin.gathering is not None
    ]
    for name in places.beside:
        if not name.startswith(ROOT) and not any(part in SHARED for part in name.split(".")):
            raise PlanError(
                f"{where}: what {name} is to the layers is not known, so the adapter cannot follow them"
            )
        follows = next((one[0] for one in gathered if one and one[0] in name.split(".")), None)
        if follows is not None:
            raise PlanError(
                f"{where}: {name} is of {follows}, which has an entry for each layer; an adapter of that cannot follow"
            )


# -- what the settings are compared by -----------------------------------------------------------------------------


def _adapted_module(name: str) -> str:
    """The module beside the layers that a tensor of the adapter is of; nothing for a copy of a base's own tensor."""
    parts = plain(name).removeprefix(ROOT).split(".")
    own = parts[-1] if parts[-1] not in ("weight", "bias") else ""
    role = next((part for part in reversed(parts) if part in ROLES), own)
    return ".".join(parts[: parts.index(role)]) if role and name.startswith(ROOT) else ""


def _modules(change: Change, places: Places, adapted: list[str]) -> tuple[Modules, list[str]]:
    """The modules and tensors of the base under their paths in the network, and the old names of the tensors."""
    pairs: list[tuple[str | None, str]] = []
    names: list[str] = []
    inside: set[str] = set()
    for place in places.heads:
        stack, own = _bare(places.series(place, change)), change.stacks[place]
        old, now = by_layer(own, change.before), by_layer(own, change.tensors)
        inside.update(name for layer in old.values() for name in layer.values())
        rests = {
            number: {*layer, *(plain(rest) for rest in places.layers.get((place, number), {}))}
            for number, layer in old.items()
        }
        for number, layer in old.items():
            names += [f"{stack.series.name(number + own.base)}.{rest}" for rest in layer]
        for at, source in enumerate(stack.sources):
            new, origin = stack.series.name(at + own.base), stack.series.name(source + own.base)
            for path in _prefixes(now.get(at, {}) if source < 0 else rests.get(source, {})):
                pairs.append((None if source < 0 else origin + path, new + path))
    beside = {
        path.removeprefix(".")
        for name in (*(change.before - inside), *places.beside)
        for path in _prefixes([plain(name).removeprefix(ROOT)])
    }
    return Modules(pairs, sorted(beside, key=natural_key), adapted), names


def _prefixes(rests: Mapping[str, Any] | set[str] | list[str]) -> Iterator[str]:
    """The paths of modules, at every depth, and of tensors, each with a dot in front."""
    seen: set[str] = set()
    for rest in rests:
        parts = rest.split(".")
        for end in range(1, len(parts) + 1):
            path = "." + ".".join(parts[:end])
            if path not in seen:
                seen.add(path)
                yield path


def _bare(stack: Stack) -> Stack:
    """A stack under its path in the network itself, as settings state it."""
    return replace(stack, path=f"{stack.path}.".removeprefix(ROOT).rstrip("."))


def _count_layers(config: dict[str, Any], change: Change) -> None:
    """Bring the count of the base's layers, which prompts state, to the new one."""
    counted = config.get("num_layers")
    found = {len(stack.order) for stack in change.stacks if stack.before == counted}
    if type(counted) is int and len(found) == 1:
        config["num_layers"] = found.pop()
    elif type(counted) is int and any(stack.changed for stack in change.stacks):
        raise PlanError(
            f"{ADAPTER_CONFIG}'s num_layers is {counted}, which counts none of the stacks that have changed"
        )
