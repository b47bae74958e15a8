"""Reading folders of Accelerate's ``save_state``: the network's tensors by their headers. No torch here."""

from __future__ import annotations

from pathlib import Path

from elastic_ir.checkpoints.dcp.read import load_source
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.checkpoints.read import inside, tensors_in, tie
from elastic_ir.errors import SourceError
from elastic_ir.formats import ReadOptions, Stored
from elastic_ir.formats.model_folder import name_of
from elastic_ir.formats.training_folder import (
    PIECES,
    TrainingFolder,
    is_training_folder,
    networks_in,
)
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import TensorData


def read_training_folder(path: Path, options: ReadOptions) -> Graph | Stored:
    """A folder's network: a graph of names and shapes, or for an architecture that is given the tensors.

    Raises SourceError as the readers of its files do, and where none or several of its networks could be meant.
    """
    graph = load_training_folder(path, options.key)
    if options.arch is None:
        return graph
    return Stored({name: weight.storage.data for name, weight in graph.weights.items()})


def load_training_folder(folder: Path, key: str | None = None) -> Graph:
    """The graph of a folder's network; ``key`` is the name of its file or folder, with its suffix or without."""
    network = _chosen(folder, key)
    path = inside(folder / network, folder.resolve())
    ordered = path.suffix == ".bin"
    metadata: dict[str, str] = {}
    sharded = None
    parts: tuple[str, ...] = ()
    tensors: dict[str, TensorData]
    if path.is_dir():
        sharded = load_source(path)
        tensors = dict(sharded.tensors)
    else:
        form = (None, network) if path.suffix == ".json" else (network, None)
        found, places, metadata = tensors_in(folder, folder.resolve(), *form)
        parts = tuple(sorted({*places.values()} - {network}))
        tensors = {name: found[name] for name in (found if ordered else sorted(found))}
    graph = graph_of_tensors(name_of(folder), tensors)
    if ordered:
        tie(graph)
    parameters: dict[int, str] = {}
    for name, weight in graph.weights.items():
        if weight.is_parameter:
            parameters.setdefault(id(weight.storage), name)
    graph.origin = TrainingFolder(
        folder, network, tensors, tuple(parameters.values()), ordered, metadata, sharded, parts
    )
    return graph


def _chosen(folder: Path, key: str | None) -> str:
    networks = networks_in(folder)
    if not networks:
        piece = min(path.name for path in folder.iterdir() if PIECES.fullmatch(path.name))
        raise SourceError(
            f"{folder} holds the pieces of single ranks ({piece}), which only the same number of ranks puts together; "
            "save it with the state dict type SHARDED_STATE_DICT or FULL_STATE_DICT"
        )
    if key is not None:
        named = [name for name in networks if key in (name, name.partition(".")[0])]
        if not named:
            raise SourceError(f"{folder} has no network {key!r}; it has {', '.join(networks)}")
        return named[0]
    if len(networks) > 1:
        raise SourceError(
            f"{folder} holds several networks, {', '.join(networks)}; say which one is meant, for example by --key "
            f"{networks[0].partition('.')[0]} (in Python key={networks[0].partition('.')[0]!r})"
        )
    return networks[0]


def training_folder(folder: Path, key: str | None = None) -> TrainingFolder:
    """A folder with its network chosen; SourceError where it is none of Accelerate's, and as the readers raise it."""
    if not is_training_folder(folder):
        raise SourceError(f"{folder} is not a folder of Accelerate's save_state")
    origin = load_training_folder(folder, key).origin
    assert isinstance(origin, TrainingFolder)
    return origin
