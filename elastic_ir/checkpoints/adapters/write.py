"""Writing an adapter that follows its base: as a folder of its own, or beside the base's weights. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elastic_ir.checkpoints.adapters.change import Change
from elastic_ir.checkpoints.adapters.follow import FollowedAdapter, follow_adapter
from elastic_ir.checkpoints.adapters.read import Adapter, read_adapter
from elastic_ir.checkpoints.card import CARD, adapter_card, plan_text
from elastic_ir.checkpoints.held import Place
from elastic_ir.checkpoints.record import Step, gone_from, read_record, record_text
from elastic_ir.checkpoints.shards import write_shard
from elastic_ir.checkpoints.side_files import SideFile, adapters_in, copy_side_file, is_side_file
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_of_adapter
from elastic_ir.formats.compound_folder import network_in
from elastic_ir.formats.files import atomic_folder, stamp_of
from elastic_ir.formats.model_folder import RECORD, CheckpointSource, label_of
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import TensorData, nbytes
from elastic_ir.version import __version__

#: How the layers of another network are called in a plan of which the name is not known any more.
_OTHER = ("", "other")


@dataclass(frozen=True)
class AdapterPlan:
    """A folder with an adapter that follows its base, as it will be written."""

    adapter: Adapter
    change: Change
    made: FollowedAdapter
    step: Step
    texts: dict[str, str]
    side: list[SideFile]
    left_out: list[str]  #: files of weights that are no adapter's

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(map(nbytes, self.made.tensors.values()))

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of it."""
        moved = [
            f"{stack.label} {stack.before} -> {len(stack.order)} ({self.step.plan[stack.label]})"
            for stack in self.change.stacks
        ]
        found = [("adapter", f"{self.adapter.kind}, {_count(self.made)}"), ("base was", self.change.base)]
        found += [("layers", text) for text in moved]
        found += [
            ("base now", f"{self.made.config['base_model_name_or_path']}, as {ADAPTER_CONFIG} names it")
        ]
        found += [("settings", note) for note in self.made.notes]
        if any(source for stack in self.change.stacks for source, _ in stack.places()):
            found.append(("note", "layers of other networks than the adapter's base have no tensors of it"))
        if self.left_out:
            found.append(("left out", ", ".join(self.left_out)))
        return found


def plan_follow(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str],
    trained_on: str | None = None,
    component: str | None = None,
) -> AdapterPlan:
    """Decide on everything that :func:`save_follow` writes: an adapter for the folder that its base was changed into.

    ``folder`` may be the name of an adapter of the hub, which is fetched into its cache; ``base`` the name of a model
    there, or a URL, of which the configuration, the record and the headers of the weights are fetched.

    ``trained_on`` says which of the models in the record of ``base`` the adapter belongs to, where its own settings do
    not; ``component`` which network of a base that holds several. Raises SourceError and PlanError, see
    :func:`~elastic_ir.checkpoints.adapters.follow.follow_adapter`.
    """
    adapter = read_adapter(_folder_of(os.fspath(folder)))
    place = Place.of(os.fspath(base), component)
    if place.awaited is None and place.headers is None:
        place = Place(network_in(place.path, component))
    change = Change.recorded(place, adapter.base, trained_on)
    made = follow_adapter(adapter, change, *_named(os.fspath(base)))
    step = _step(adapter, change, made)
    texts = {ADAPTER_CONFIG: _text(made), **_told(adapter, change, step)}
    side, left_out = _others(adapter.folder, {*texts, *ADAPTER_WEIGHTS})
    return AdapterPlan(adapter, change, made, step, texts, side, left_out)


def _folder_of(source: str) -> Path:
    """The folder of an adapter; of one of the hub, that in the cache."""
    if not os.path.lexists(source):
        from elastic_ir.formats.hub_cache import hub_name

        name = hub_name(source)
        if name is not None and not name.is_gguf:
            from elastic_ir.checkpoints.hub.adapter import adapter_of_hub

            return adapter_of_hub(name)
    return Path(source)


def _named(base: str) -> tuple[str, str | None]:
    """What settings call a base, and its revision: a hub name as libraries take it, a URL as it may be shown."""
    if os.path.lexists(base):
        return base, None
    from elastic_ir.formats.hub_cache import hub_name
    from elastic_ir.formats.remote import is_url, without_credentials

    if is_url(base):
        return without_credentials(base), None
    name = hub_name(base)
    return (name.repo, name.revision) if name is not None else (base, None)


def _step(adapter: Adapter, change: Change, made: FollowedAdapter) -> Step:
    """What the record of an adapter states of this change."""
    plan = {stack.label: plan_text(stack, _OTHER) for stack in change.stacks}
    gone = gone_from(adapter.tensors, made.lineage)
    return Step(__version__, (label_of(adapter.folder),), plan, made.lineage, gone)


def _told(adapter: Adapter, change: Change, step: Step) -> dict[str, str]:
    """The record and the card of an adapter with one change more."""
    return {
        RECORD: record_text([*read_record(adapter.folder), step]),
        CARD: adapter_card(adapter.folder / CARD, step, change.stacks),
    }


def save_follow(plan: AdapterPlan, out: Path, replace: bool = False) -> Path:
    """Write the folder, which appears whole or not at all; OutputError where the target is taken, or not writable."""
    with atomic_folder(out, replace) as room:
        write_shard(room / ADAPTER_WEIGHTS[0], plan.made.tensors, {"format": "pt"}, durable=False)
        for name, text in plan.texts.items():
            (room / name).write_text(text, encoding="utf-8")
        for file in plan.side:
            copy_side_file(file, room / file.name)
    return out


def _others(folder: Path, ours: set[str]) -> tuple[list[SideFile], list[str]]:
    """The other files of an adapter's folder: those that are copied, and those of weights."""
    side, left_out = list[SideFile](), list[str]()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in ours or any(part.startswith(".") for part in name.split("/")):
            continue
        if is_side_file(name) and not is_of_adapter(path):
            status = path.stat()
            side.append(SideFile(name, path, status.st_size, stamp_of(status)))
        else:
            left_out.append(name)
    return side, left_out


def _text(made: FollowedAdapter) -> str:
    """The settings as PEFT lays them out."""
    return json.dumps(made.config, indent=2, sort_keys=True)


def _count(made: FollowedAdapter) -> str:
    layers = f", in {made.layers} layer{'s' * (made.layers != 1)}" if made.layers else ""
    return f"{len(made.tensors)} tensors{layers}"


# -- beside the base's weights -------------------------------------------------------------------------------------


@dataclass
class AdaptersBeside:
    """The adapters that lie in a model's folder, as its layers are now; and those that cannot follow them."""

    files: dict[str, dict[str, TensorData]] = field(default_factory=dict)  #: by name in the whole folder
    texts: dict[str, str] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)


def follow_beside(
    graph: Graph, source: CheckpointSource, stacks: Sequence[Stack], to: str | None
) -> AdaptersBeside:
    """The adapters in a folder that is written anew at ``to``; what cannot follow is left out, with the reason.

    A program that finds both in a folder loads the base that the adapter names, so it names the new folder.
    """
    found = AdaptersBeside()
    whole = source.whole or source.folder
    for folder in adapters_in(source):
        name = folder.relative_to(whole).as_posix()
        before = "" if name == "." else f"{name}/"
        try:
            adapter = read_adapter(folder, source.root)
            base = to if to is not None else adapter.base
            change = Change.of_graph(graph, source, stacks)
            made = follow_adapter(adapter, change, base)
        except (SourceError, PlanError) as error:
            found.facts.append(("left out", f"{before}{ADAPTER_CONFIG} and its tensors: {error}"))
            continue
        found.files[f"{before}{ADAPTER_WEIGHTS[0]}"] = dict(made.tensors)
        found.texts[f"{before}{ADAPTER_CONFIG}"] = _text(made)
        if (
            before and (folder / RECORD).exists()
        ):  # an adapter that has followed before has a record of its own
            told = _told(adapter, change, _step(adapter, change, made))
            found.texts |= {f"{before}{name}": text for name, text in told.items()}
        text = (
            f"{before}{ADAPTER_WEIGHTS[0]} follows ({adapter.kind}, {_count(made)}), with {base} as its base"
        )
        found.facts.append(("adapter", "; ".join((text, *made.notes))))
    return found
