"""What ``verify`` reads of a checkpoint, a folder or a GGUF file: tensors, masks, layers, record, sources. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from elastic_ir.checkpoints.dcp.read import graph_of, load_source
from elastic_ir.checkpoints.gguf.read import load_gguf
from elastic_ir.checkpoints.gguf.record import RECORD as GGUF_RECORD
from elastic_ir.checkpoints.gguf.record import read_steps
from elastic_ir.checkpoints.read import inside, load_checkpoint, masks_beside
from elastic_ir.checkpoints.record import Step, read_record
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.training_folder import load_training_folder
from elastic_ir.errors import SourceError
from elastic_ir.formats import GGUF, format_of
from elastic_ir.formats.adapter_folder import is_adapter
from elastic_ir.formats.dcp.folder import is_dcp
from elastic_ir.formats.dcp.metadata import METADATA
from elastic_ir.formats.gguf.parts import GgufSource
from elastic_ir.formats.model_folder import (
    RECORD,
    Awaited,
    CheckpointSource,
    is_checkpoint,
    label_of,
    layout_of,
)
from elastic_ir.formats.packed_masks import read_mask_tensors
from elastic_ir.formats.remote import (
    exists,
    is_url,
    lying_beside,
    path_of,
    url_beside,
    without_credentials,
)
from elastic_ir.formats.training_folder import is_training_folder
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import DIGITS
from elastic_ir.tensors.lazy import Mask, TensorData


@dataclass(eq=False)
class Held:
    """A checkpoint's tensors and masks, and where its layers lie."""

    name: str
    tensors: dict[str, TensorData]
    masks: Mapping[str, Mask] | None  #: None where there is no file of masks
    #: by the stack's label and the layer's number: end of name, name
    layers: dict[str, dict[int, dict[str, str]]]
    outside: set[str]  #: what lies in no layer
    #: by the stack's label: layers behind those that are counted, which stay there
    tails: dict[str, list[int]]

    @staticmethod
    def of(path: Path, graph: Graph, labels: Sequence[str]) -> Held:
        """What a checkpoint holds, by its graph; ``labels`` are those of the stacks that a record's plan names."""
        sidecar = masks_beside(path) if path.is_dir() else None
        tensors = {name: weight.storage.data for name, weight in graph.weights.items()}
        layers = {label: _layers(graph, label) for label in labels}
        held = {n for stack in layers.values() for layer in stack.values() for n in layer.values()}
        masks = read_mask_tensors(sidecar) if sidecar is not None else None
        tails = {
            stack.label: [stack.before + extra for extra in range(stack.tail)]
            for stack in Stack.all_of(graph)
        }
        return Held(label_of(path), tensors, masks, layers, tensors.keys() - held, tails)


@dataclass(frozen=True)
class Place:
    """Where a checkpoint lies, and what of it is not there yet: nothing, but for a model of the hub."""

    path: Path
    awaited: Awaited | None = None
    url: str = ""  #: where it lies, if it is behind a URL
    headers: Callable[[], Graph] | None = None  #: reads a file of which not all is here

    @property
    def label(self) -> str:
        """What it is called to a user: its URL, or its path."""
        return without_credentials(self.url) if self.url else str(self.path)

    def inside(self, inner: Path) -> Place:
        """The part of a compound folder that lies at ``inner``; the place itself where it is no such folder."""
        part = self.path / inner
        return (
            self
            if self.awaited is not None or is_checkpoint(self.path) or not is_checkpoint(part)
            else Place(part)
        )

    @staticmethod
    def of(source: str | Path, component: str | None = None) -> Place:
        """The place of a source: a path, a URL, or a model of the hub, of which what is needed is fetched.

        ``component`` is one of the networks of a model of the hub that has several. SourceError.
        """
        if not os.path.lexists(source):
            from elastic_ir.formats.hub_cache import hub_name

            text = str(source)
            if is_url(text):
                return Place._behind(text)
            name = hub_name(text)
            if name is not None and name.is_gguf:
                from elastic_ir.checkpoints.hub.gguf import gguf_of_hub

                model = gguf_of_hub(name)
                return Place(model.path, headers=model.graph)
            if name is not None:
                from elastic_ir.checkpoints.hub.model import snapshot

                found = snapshot(name, "headers", component=component)
                return Place(found.folder, found)
        return Place(Path(source))

    @staticmethod
    def _behind(url: str) -> Place:
        url = url.rstrip("/")  # else what is beside it would be looked for in it
        path, plain = path_of(url), without_credentials(url)
        if GGUF.names(path):
            return Place(
                path, url=url, headers=lambda: load_gguf(path, lying_beside(url, path.parent), plain)
            )
        from elastic_ir.checkpoints.remote import RemoteFolder

        found = RemoteFolder(url)
        return Place(found.folder, found, url)


def load_headers(place: Place, like: Graph | None = None, key: str | None = None) -> Graph:
    """A checkpoint as a graph, by its headers; of several weights the variant that ``like`` was read from.

    ``key`` chooses among the networks of a training's checkpoint. SourceError as their readers raise it.
    """
    path = place.path
    if place.headers is not None:
        return place.headers()
    if _is_gguf(path):
        return load_gguf(path)
    if is_dcp(path):
        return graph_of(load_source(path, key))
    if is_training_folder(path):
        return load_training_folder(path, key)
    origin = like.origin if like is not None else None
    variant = origin.layout.variant if isinstance(origin, CheckpointSource) else ""
    return load_checkpoint(path, place.awaited, variant or None)


def steps_held(path: Path, graph: Graph) -> list[Step]:
    """The steps of a checkpoint's record, the oldest first; none where it has none."""
    if isinstance(graph.origin, GgufSource):
        return read_steps(graph.origin.head)
    if (path / RECORD).exists() and isinstance(graph.origin, CheckpointSource):
        inside(path / RECORD, graph.origin.root)
    return read_record(path)


def configuration_of(path: Path) -> str:
    """What a checkpoint's statement of its network is called."""
    if _is_gguf(path):
        return "metadata"
    if is_training_folder(path):
        return path.name
    return METADATA if is_dcp(path) else layout_of(path).config


def sources_of(own: Place, step: Step | None, against: list[Place]) -> tuple[Place, ...]:
    """The checkpoints to compare with: those given, else those of the record's names, beside this one or in a hub's
    cache.
    """
    path = own.path
    file = _is_gguf(path)
    what, record = ("file", GGUF_RECORD) if file else ("folder", RECORD)
    folders = (is_dcp, is_training_folder, is_adapter)
    usable = _is_gguf if file else next((holds for holds in folders if holds(path)), is_checkpoint)
    for place in against:
        other = place.path
        if place.awaited is None and not usable(other):
            wanted = (
                "a GGUF file"
                if file
                else "an adapter's folder"
                if usable is is_adapter
                else f"a folder of a {'training ' * (usable in folders[:2])}checkpoint's weights"
            )
            raise SourceError(f"{place.label} is not {wanted}")
        if place.label == own.label or other.resolve() == path.resolve():
            raise SourceError(f"{place.label} is the {what} itself; give the source that it was made from")
    if step is None:
        if len(against) != 1:
            raise SourceError(
                f"{own.label} has no {record}, which states where its tensors come from; give one source to compare "
                "with by names (--against SOURCE)"
            )
        return tuple(against)
    if against and len(against) != len(step.sources):
        raise SourceError(
            f"{own.label} was made from {', '.join(step.sources)} (sources: {len(step.sources)}), and --against gives "
            f"{len(against)}; give each once, in that order"
        )
    twice = next((name for name in step.sources if step.sources.count(name) > 1), None)
    if not against and twice is not None:
        raise SourceError(
            f"{own.label} was made from two {what}s that are called {twice!r}; state which is which, by --against "
            f"SOURCE for each of {', '.join(step.sources)}"
        )
    beside = [_recorded(own, name, usable) for name in step.sources] if not against else []
    found = [place for place in beside if place is not None]
    return tuple(found if found and len(found) == len(beside) else against)


def _recorded(own: Place, name: str, usable: Callable[[Path], bool]) -> Place | None:
    """A source of a record: in a hub's cache, beside the checkpoint that was made of it, or a URL of the same place.

    None if it is nowhere. What lies in the cache in part, as a squeeze leaves it, is seen whole by its headers if the
    hub can be asked.
    """
    from elastic_ir.formats.hub_cache import SCHEME, folder_of_label, is_offline, is_whole

    cached = folder_of_label(name)
    if cached is None:
        if is_url(name):
            found = _recorded(own, path_of(name).name, usable)
            near = (
                urlsplit(without_credentials(name))[:2] == urlsplit(without_credentials(own.url))[:2]
            )  # a record is anybody's: it sends nobody elsewhere
            return found or (_reached(name) if near else None)
        if own.url:
            return _reached(url_beside(own.url, name)) if len(Path(name).parts) == 1 else None
        other = own.path.resolve()
        for _ in Path(name).parts:  # a part of a folder is recorded by both names
            other = other.parent
        other /= name
        there = other.exists() and usable(other) and other != own.path.resolve()
        return Place(other) if there else None
    if usable is is_adapter or cached.is_file() or is_whole(cached):
        return Place(cached) if usable(cached) else None
    try:
        return Place.of(f"{SCHEME}{name}") if not is_offline() else None
    except SourceError:
        return None


def _reached(url: str) -> Place | None:
    """What lies behind a URL, if anything that can be read does."""
    try:
        found = Place.of(url)
        return found if found.awaited is not None or exists(url) else None
    except SourceError:
        return None


def _is_gguf(path: Path) -> bool:
    return not path.is_dir() and format_of(path) is GGUF


def _layers(graph: Graph, label: str) -> dict[int, dict[str, str]]:
    """The tensors of a stack's layers by number, counted from 0; the label is a path, as in the record."""
    head = "" if label == "network" else re.escape(label) + "[._]?"
    pattern = re.compile(rf"{head}({DIGITS})(?:\.(.+))?")
    found: dict[int, dict[str, str]] = {}
    for name in graph.weights:
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), {})[match[2] or ""] = name
    bases = [stack.base for stack in Stack.all_of(graph) if stack.label == label]
    base = bases[0] if bases else min(found, default=0)
    return {number - base: layer for number, layer in found.items()}
