"""A network as boxes: its stages with their blocks, each with the block of the source that it is a copy of.

What the drawings (SVG, DOT, Mermaid) and the report page have in common; nothing here knows of coordinates but colour:
a source's blocks run through the hues in their order, so that a copied run of blocks repeats a run of colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from elastic_ir.analysis.summary import Row, summarise
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block, Stage
from elastic_ir.pictures.origins import Origins, Place, gone_indices, origins_of, places_of

FIRST_HUE, HUES = 262.0, 290.0  #: degrees: of the first block, and from it to the last one
LIGHTNESS, CHROMA = 0.64, 0.13  #: of all colours of blocks, in OKLCH; legible on white and on black


@dataclass(frozen=True)
class Box:
    """One block; ``index`` counts within its stage, ``source`` within the stage of the source, ``b/3`` in another."""

    index: int
    path: str
    role: str  #: "entry", "free" or "last"
    source: str  #: "" where nothing is stated
    copy: bool  #: whether an earlier block has the same source

    @property
    def kept(self) -> bool:
        """Whether plans leave it where it is."""
        return self.role != "free"


@dataclass(frozen=True)
class StagePicture:
    """The blocks of a stage, and the source's blocks that they are made of, where that is known."""

    name: str
    output: str  #: what it hands on: ``16 @ 32x32``; "" where that is not known
    layers: int | None
    sparsity: float
    boxes: tuple[Box, ...]
    before: tuple[
        str, ...
    ]  #: the source's blocks as :attr:`Box.source` has them, those without a copy among them

    def hue(self, source: str) -> float:
        """The hue of a source's block, in degrees; of blocks without a stated source by their own index."""
        order = self.before or tuple(str(box.index) for box in self.boxes)
        place = order.index(source) if source in order else 0
        return (FIRST_HUE + HUES * place / max(len(order) - 1, 1)) % 360


@dataclass(frozen=True)
class Picture:
    """A whole network: what opens it, its stages, and what closes it."""

    name: str
    depth: int | None
    stem: str  #: what a row before the first stage is called; "" where there is none
    head: str
    stages: tuple[StagePicture, ...]
    sparsity: float
    source: str  #: the name of the network that it was made of; "" where nothing is stated

    @property
    def changed(self) -> bool:
        """Whether any block is elsewhere than in the source, or any is gone."""
        return any(
            stage.before != tuple(box.source for box in stage.boxes) for stage in self.stages if stage.before
        )


def picture_of(graph: Graph) -> Picture:
    """The picture of a graph; StructureError where nothing in it repeats."""
    rows = summarise(graph)
    origins = origins_of(graph)
    places = places_of(graph, origins)
    stages = tuple(stage_picture(row, row.stage, places, origins) for row in rows if row.stage is not None)
    return Picture(
        graph.name,
        graph.structure.depth,
        "stem" if rows[0].kind == "stem" else "",
        "head" if any(row.kind == "head" for row in rows) else "",
        stages,
        graph.sparsity(),
        origins.sources[0] if places else "",
    )


def stage_picture(row: Row, stage: Stage, places: dict[Block, Place], origins: Origins) -> StagePicture:
    """One stage, from its row of the summary and the places that its blocks had in the source."""
    blocks = stage.all_blocks
    own = [places.get(block) for block in blocks]
    start = min((place.index for place in own if place is not None and not place.source), default=0)
    start = start if _shares(stage) else 0
    boxes = []
    seen: set[str] = set()
    for index, (block, place) in enumerate(zip(blocks, own, strict=True)):
        source = _named(place, start, origins) if place is not None else ""
        role = "entry" if block is stage.entry else "last" if block is stage.exit else "free"
        boxes.append(Box(index, block.path, role, source, source in seen))
        seen |= {source} - {""}
    return StagePicture(
        row.name,
        str(row.activation) if row.activation is not None else "",
        row.layers,
        row.sparsity,
        tuple(boxes),
        _before(stage, own, start, origins),
    )


def _before(stage: Stage, own: list[Place | None], start: int, origins: Origins) -> tuple[str, ...]:
    """The source's blocks in their order; those of further networks after those of the first."""
    known = {place for place in own if place is not None}
    if not known:
        return ()
    first = {place.index for place in known if not place.source}
    gone = gone_indices(stage, origins)
    first |= {
        index for index in gone if start <= index and (not _shares(stage) or index <= max(first, default=0))
    }
    others = sorted({place for place in known if place.source}, key=lambda place: (place.source, place.index))
    return (
        *(str(index - start) for index in sorted(first)),
        *(_named(place, start, origins) for place in others),
    )


def _named(place: Place, start: int, origins: Origins) -> str:
    other = f"{origins.sources[place.source]}/" if place.source else ""
    return f"{other}{place.index - (0 if other else start)}"


def _shares(stage: Stage) -> bool:
    """Whether its list holds further stages, so that its blocks are not the list's first ones."""
    return len(stage.container.children) - stage.container.tail > len(stage)


def hex_colour(hue: float, lightness: float = LIGHTNESS, chroma: float = CHROMA) -> str:
    """A colour of OKLCH as sRGB, ``#5a8fd0``; Ottosson 2020, *A perceptual color space for image processing*.

    >>> hex_colour(0, 1, 0), hex_colour(0, 0, 0)
    ('#ffffff', '#000000')
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    roots = (
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    )
    long, medium, short = (root**3 for root in roots)
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(_gamma(part) * 255):02x}" for part in linear)


def _gamma(part: float) -> float:
    part = min(max(part, 0.0), 1.0)
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055


def links_of(stage: StagePicture) -> Iterator[tuple[int, int]]:
    """Pairs of the place of a source's block and that of a block that was made of it."""
    order = {source: place for place, source in enumerate(stage.before)}
    for box in stage.boxes:
        if box.source in order:
            yield order[box.source], box.index
