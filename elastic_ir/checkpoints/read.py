"""Hugging Face checkpoint folders by their headers alone: one or many shards and an index. No torch here.

The shards are safetensors, or else files of ``torch.save``, whose pickles are read as data.

What is wrong with a folder is found before a byte of a tensor is read: every header is parsed and compared with
the others, the index and the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.config.depth import Stack, check_depth
from elastic_ir.checkpoints.facts import facts_of
from elastic_ir.checkpoints.inner_stages import take_counted_lists
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.checkpoints.oracle.comparison import vouched
from elastic_ir.checkpoints.oracle.structure import by_layer, counts, fitting, learn_lists, learn_units
from elastic_ir.checkpoints.uncounted_layers import set_tail_apart
from elastic_ir.errors import SourceError, reason
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.adapter_folder import is_adapter, no_model
from elastic_ir.formats.bin import read_bin
from elastic_ir.formats.dcp.shards import INFO, refuse_shard
from elastic_ir.formats.deepspeed_folder import refuse_pieces
from elastic_ir.formats.files import read_json
from elastic_ir.formats.model_folder import (
    MASKS,
    PIPELINE,
    Awaited,
    CheckpointSource,
    Layout,
    is_checkpoint,
    layout_of,
    name_of,
)
from elastic_ir.formats.safetensors import read_safetensors
from elastic_ir.formats.training_folder import refuse_folders_inside
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import TensorData, nbytes
from elastic_ir.tensors.weights import Storage

#: What ElasticIR writes into the metadata of its own single files, and torch about each tensor (that it is whole): it
#: would not fit another network.
_LEFT = ("elastic_ir.", INFO)


def load_checkpoint(
    folder: Path, awaited: Awaited | None = None, variant: str | None = None, whole: Path | None = None
) -> Graph:
    """A folder's tensors as a graph without nodes, found from names and shapes.

    ``awaited`` stands for the files of weights that are not there yet: they are fetched when their bytes are needed.
    ``variant`` chooses among weights of several, see :func:`elastic_ir.formats.model_folder.chosen_layout`; ``whole``
    is the folder of which this one is a part, where the result is to be written with the other parts.
    Raises SourceError, one line: no configuration, a shard missing, truncated or damaged, an index that does not
    match the shards, a name in two shards, a link out of the folder, or a configuration that counts other
    numbers of layers than the weights hold.
    """
    if awaited is None and not is_checkpoint(folder):
        refuse_pieces(folder)
    layout = layout_of(folder, variant) if awaited is None else awaited.layout
    root, config = root_of(whole or folder), read_configuration(folder, layout)
    tensors, places, metadata = _tensors(folder, root, layout, awaited)
    graph = graph_of_tensors(name_of(folder), tensors)
    tie(graph)
    shapes = {name: data.shape for name, data in tensors.items()}
    shards = tuple(folder / file for file in dict.fromkeys(sorted(places.values())))
    graph.origin = CheckpointSource(
        folder, root, config, shards, layout, metadata, shapes, awaited=awaited, places=places,
        whole=whole if whole != folder else None,
    )  # fmt: skip
    learn_lists(graph)
    take_counted_lists(graph, config)
    set_tail_apart(graph, config)
    stacks = Stack.all_of(graph)
    try:
        check_depth(config, stacks, tensors, str(folder / layout.config))
    except SourceError:
        if not vouched(config, shapes):  # by names and numbers alone a valid folder may look like another's
            raise
    graph.origin.learn_units, graph.origin.by_layer, graph.origin.counts = learn_units, by_layer, counts
    graph.origin.fitting = fitting
    graph.origin.summary = tuple(facts_of(config, stacks, tensors, len(shards)))
    graph.origin.kinds = {stack.label: stack.kinds(shapes) for stack in stacks}
    return graph


def tensors_of(folder: Path, awaited: Awaited | None = None) -> dict[str, TensorData]:
    """All tensors of a model's folder by name, by their headers, whatever network its configuration states."""
    layout = layout_of(folder) if awaited is None else awaited.layout
    return _tensors(folder, root_of(folder), layout, awaited)[0]


def read_configuration(folder: Path, layout: Layout | None = None) -> dict[str, Any]:
    """The content of a folder's ``config.json``; SourceError where there is none, or it is not a table."""
    path = folder / (layout or layout_of(folder)).config
    if not path.exists():
        parts = sorted(part.parent.name for part in folder.glob("*/config.json")) if folder.is_dir() else []
        if (folder / PIPELINE).exists() and parts:
            raise SourceError(
                f"{folder} is a pipeline of several networks; give the folder of one: "
                + ", ".join(str(folder / part) for part in parts)
            )
        if is_adapter(folder):
            raise SourceError(no_model(folder))
        refuse_folders_inside(folder)
        known = is_checkpoint(folder)  # as torch's own writer of safetensors leaves them
        raise SourceError(
            f"{folder} has no {path.name}, "
            + (
                "only weights: put that of their model beside them"
                if known
                else "so it is not a Hugging Face model folder"
            )
        )
    return read_table(path, root_of(folder))


def tie(graph: Graph) -> None:
    """Names of one range of bytes are tied, as ``torch.save`` keeps them; in safetensors there are none."""
    seen: dict[TensorData, Storage] = {}
    for name, weight in graph.weights.items():
        if nbytes(weight.storage.data):
            storage = seen.setdefault(weight.storage.data, weight.storage)
            graph.weights[name] = replace(weight, storage=storage)


def masks_beside(folder: Path) -> Path | None:
    """The masks that ElasticIR wrote beside the weights, if any."""
    path = folder / MASKS
    return inside(path, root_of(folder)) if path.exists() else None


def root_of(folder: Path) -> Path:
    """The folder that links may lead to: the checkpoint's own, in a hub cache the repository's.

    A cache holds ``snapshots/REVISION/FILE`` as links to ``blobs/HASH`` beside them.
    """
    whole = folder.resolve()
    cached = next((up for up in (whole, *whole.parents) if up.parent.name == "snapshots"), None)
    return cached.parent.parent if cached is not None else whole


def inside(path: Path, root: Path) -> Path:
    """The path itself; SourceError where it is a link that leads out of the folder."""
    whole = path.resolve()
    # a hub's cache keeps what several models share beside them
    shared = root.name.startswith("models--") and whole.is_relative_to(root.parent / "blobs")
    if not (whole.is_relative_to(root) or shared):
        raise SourceError(
            f"{path} is a symbolic link out of the folder, to {whole}; put the file itself there"
        )
    return path


def read_table(path: Path, root: Path) -> dict[str, Any]:
    """A table from a JSON file; SourceError where it is something else."""
    try:
        found = read_json(inside(path, root))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} is damaged: it holds no table")
    return found


def _tensors(
    folder: Path, root: Path, layout: Layout, awaited: Awaited | None
) -> tuple[dict[str, TensorData], dict[str, str], dict[str, str]]:
    """All tensors by name, for each the file that it lies in, and those files' metadata."""

    def absent(file: str) -> tuple[Mapping[str, TensorData], dict[str, str]] | None:
        return awaited.shard(file) if awaited is not None and not (folder / file).exists() else None

    names = ((form, str(form[0] or form[1])) for form in layout.forms)
    there = (form for form, name in names if (folder / name).exists() or absent(name) is not None)
    whole, index = next(there, (None, layout.index))
    found, held, metadata = tensors_in(folder, root, whole, index, absent)
    # safetensors by name, as single files come: discovery then goes by the numbers in the names, however the shards are
    # cut; torch.save keeps the order in which the network has its layers, which shows more
    in_order = (whole or index) in layout.saved
    order = list(found) if in_order else sorted(found)
    return {name: found[name] for name in order}, held, metadata


def tensors_in(
    folder: Path, root: Path, whole: str | None = None, index: str | None = None,
    absent: Callable[[str], tuple[Mapping[str, TensorData], dict[str, str]] | None] = lambda file: None,
) -> tuple[dict[str, TensorData], dict[str, str], dict[str, str]]:  # fmt: skip
    """All tensors of one file, or of those of an index: by name, for each its file, and the files' metadata.

    ``absent`` gives the tensors and metadata of a file that is not there. SourceError as :func:`load_checkpoint`.
    """
    places: Mapping[str, str] | None = None
    files = [whole] if whole else []
    if index is not None:
        places = _index(folder / index, root)
        files = sorted(set(places.values()))
        _refuse_missing(folder, [file for file in files if absent(file) is None], len(files))
    found: dict[str, TensorData] = {}
    held: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for file in files:
        path = inside(folder / file, root)
        tensors, texts = absent(file) or _read(path)
        refuse_shard(path, texts)
        metadata = {**{k: v for k, v in texts.items() if not k.startswith(_LEFT)}, **metadata}
        for name, data in tensors.items():
            if name in found:
                raise SourceError(f"{folder}: the tensor {name!r} lies in both {held[name]} and {file}")
            if places is not None and places.get(name) != file:
                place = f"as in {places[name]}" if name in places else "not at all"
                raise SourceError(f"{path} holds the tensor {name!r}, which {index} names {place}")
            found[name], held[name] = data, file
    lacking = [name for name in places or () if name not in found]
    if places is not None and lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise SourceError(
            f"{folder / str(index)} names the tensor {lacking[0]!r}, which {places[lacking[0]]} does not hold{more}"
        )
    return found, held, metadata


def _read(path: Path) -> tuple[Mapping[str, TensorData], dict[str, str]]:
    """A shard's tensors and metadata, by the form that its name shows."""
    if not SAFETENSORS.names(path):
        return read_bin(path), {}
    return read_safetensors(path)


def _index(path: Path, root: Path) -> Mapping[str, str]:
    places = read_table(path, root).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise SourceError(f"{path} is damaged: its weight_map is not a table of tensors and files")
    if not places:
        raise SourceError(f"{path} names no tensor")
    for file in places.values():
        if file != Path(file).name or file in ("", ".", "..") or "\\" in file or "\0" in file:
            raise SourceError(f"{path} names the file {file!r}; shards lie in the index's own folder")
    return places


def _refuse_missing(folder: Path, files: list[str], count: int) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            f"{folder} is not complete: {missing[0]}{more} of {count} shards missing; fetch it again"
        )
