"""The form of a report's document, which the page shows and programs may read (docs/report.md). Keys are only added.

``report/src/schema.ts`` has the same types for the page. Numbers in lists refer to places in other lists: ``blocks`` of
a row to ``blocks`` of its network, ``mask`` of a weight to ``masks`` of the document.
"""

from __future__ import annotations

from typing import TypedDict

from elastic_ir.pictures.mask_images import MaskImage
from elastic_ir.pictures.values import Values

VERSION = 1


class WeightEntry(TypedDict):
    """A parameter or buffer."""

    name: str
    shape: list[int]
    dtype: str
    bytes: int
    parameter: bool
    prunable: bool  #: whether sparsity is counted over it
    zeros: int | None  #: what its mask prunes; None without a mask
    flops: int | None  #: operations of one run that multiply with it
    origin: str | None  #: its name in the source, where that is stated
    tied: str | None  #: the first name of the same tensor, if that is another
    mask: int | None
    values: Values | None


class NodeEntry(TypedDict):
    """One operation of a block."""

    name: str
    op: str
    shape: list[int] | None  #: of its result
    reads: list[int]  #: nodes of the same block; -1 is what flows in from outside
    weights: list[str]  #: names within the block


class BlockEntry(TypedDict):
    """One block of a stage."""

    path: str
    index: int  #: within its stage
    role: str  #: "entry", "free" or "last"
    unit: (
        int | None
    )  #: the number of its unit within the stage; None where it is kept, or units are not known
    kind: str
    layers: int | None
    parameters: int
    bytes: int
    flops: int | None
    prunable: int
    zeros: int
    source: int | None  #: the block of the first network that it is a copy of
    source_name: str  #: that block within its stage, ``b/3`` in a further network; "" where nothing is stated
    copy: bool  #: whether an earlier block has the same source
    graph: int | None  #: its nodes, in ``graphs``; blocks that compute the same have the same
    weights: list[int]


class RowEntry(TypedDict):
    """A stage, or what lies before, between or behind the stages; every weight is in exactly one row."""

    kind: str  #: "stem", "stage", "transition", "head", "idle", or "all" where nothing repeats
    name: str
    type: str | None
    output: str | None
    layers: int | None
    parameters: int
    bytes: int
    flops: int | None
    prunable: int
    zeros: int
    blocks: list[int]
    weights: list[int]


class StepEntry(TypedDict):
    """Something that was done: a pass in text form with what it reported, or a recorded change of depth."""

    kind: str  #: "record" or "pass"
    text: str
    facts: list[list[str]]


class NetworkEntry(TypedDict):
    """One network."""

    name: str
    label: str  #: the source as it was given
    outline: bool  #: whether only its blocks' places are known, from the record of another network
    note: str
    facts: list[list[str]]
    depth: int | None
    parameters: int
    bytes: int
    flops: int | None
    sparse_flops: int | None  #: with each layer's operations times its mask's density
    prunable: int
    zeros: int
    rows: list[RowEntry]
    blocks: list[BlockEntry]
    weights: list[WeightEntry]
    graphs: list[list[NodeEntry]]
    steps: list[StepEntry]


class Document(TypedDict):
    """Everything that the page shows."""

    schema: int
    generator: str
    matched: str  #: how blocks were matched: "record", "names", or "" where they were not
    note: str
    networks: list[NetworkEntry]  #: the source, if there is one, and the network that the report is about
    masks: list[MaskImage]
    mask_data: str  #: the images' bytes, deflated (zlib), in base64
