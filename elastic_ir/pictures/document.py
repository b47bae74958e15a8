"""The document of a report: one network, or two with what one was made of. Collected once, plain data from then on."""

from __future__ import annotations

import base64
import json
import zlib

from elastic_ir.ir.graph import Graph
from elastic_ir.pictures.mask_images import MaskImages
from elastic_ir.pictures.network import NetworkReader, outline
from elastic_ir.pictures.origins import Origins, origins_of
from elastic_ir.pictures.schema import VERSION, Document
from elastic_ir.tensors.lazy import nbytes
from elastic_ir.version import __version__

#: Bytes of tensors that are read for histograms unless somebody asks for more.
READ = 256 << 20


def document_of(
    graph: Graph,
    against: Graph | None = None,
    *,
    label: str = "",
    other: str = "",
    values: bool | None = None,
) -> Document:
    """Everything that a report shows of a graph, and of another ``against`` which it is held.

    Whichever of the two has a record of being made of the other stands second. Without ``against``, what the record
    tells of the source stands first. ``label`` and ``other`` are what readers know the two by. ``values`` says whether
    tensors are read for histograms; None reads them where they are at hand and no more than :data:`READ` bytes.
    """
    graphs = [(graph, label or graph.info.file or graph.name)]
    if against is not None:
        graphs.insert(0, (against, other or against.info.file or against.name))
        if not origins_of(graph) and origins_of(against):
            graphs.reverse()
    images = MaskImages(
        weight.mask for each, _ in graphs for weight in each.weights.values() if weight.mask is not None
    )
    matched, origins = _matched(graphs)
    networks = []
    before: dict[tuple[int, str], int] = {}
    for place, (each, name) in enumerate(graphs):
        last = place == len(graphs) - 1
        reader = NetworkReader(
            each, origins if last else Origins(), images, _reads(each) if values is None else values
        )
        entry = reader.entry(name, before if last else {})
        if not last:
            before = {(0, block["path"]): number for number, block in enumerate(entry["blocks"])}
        networks.append(entry)
    if against is None and origins and graph.structure_or_none is not None:
        first, before = outline(origins, graph)
        for block, source in _sources(graph, origins, before):
            networks[0]["blocks"][block]["source"] = source
        if first["blocks"]:
            networks.insert(0, first)
    return Document(
        schema=VERSION, generator=f"elastic-ir {__version__}", matched=matched, note=_note(matched, images),
        networks=networks, masks=images.images, mask_data=packed(images.data),
    )  # fmt: skip


def packed(data: bytes) -> str:
    """Bytes deflated, in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def text_of(document: Document) -> str:
    """The document as JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _matched(graphs: list[tuple[Graph, str]]) -> tuple[str, Origins]:
    """How the last graph's blocks are matched with the first one's, and where its weights are from by that."""
    graph, _ = graphs[-1]
    origins = origins_of(graph, graphs[0][1].rpartition("/")[2] if len(graphs) > 1 else "")
    if origins:
        return "record", origins
    if len(graphs) == 1:
        return "", Origins()
    first = graphs[0][0]
    common = {name: (0, name) for name in graph.weights if name in first.weights}
    gone = tuple(name for name in first.weights if name not in graph.weights)
    return ("names", Origins((graphs[0][1],), common, gone)) if common else ("", Origins())


def _note(matched: str, images: MaskImages) -> str:
    notes = []
    if matched == "names":
        notes.append(
            "Neither network has a record of being made of the other: blocks of equal names are joined."
        )
    tiled = sum(image["tile"] != (1, 1) for image in images.images)
    if tiled:
        notes.append(
            f"{tiled} of {len(images.images)} masks are too large for this page and are shown as shares of tiles."
        )
    return " ".join(notes)


def _sources(graph: Graph, origins: Origins, before: dict[tuple[int, str], int]) -> list[tuple[int, int]]:
    """Pairs of a block of a graph and one of its source."""
    from elastic_ir.pictures.origins import places_of

    places = places_of(graph, origins)
    blocks = [block for stage in graph.stages for block in stage.all_blocks]
    return [
        (number, before[key])
        for number, block in enumerate(blocks)
        if block in places and (key := (places[block].source, places[block].path)) in before
    ]


def _reads(graph: Graph) -> bool:
    """Whether tensors are read unasked: not those of folders and GGUF files, which may be on another machine."""
    return (
        not graph.origin.streamed
        and sum(nbytes(weight.storage.data) for weight in graph.weights.values()) <= READ
    )
