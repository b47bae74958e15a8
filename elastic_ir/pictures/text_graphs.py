"""A picture as text that other programs draw: DOT for Graphviz, and Mermaid, which GitHub and GitLab show in Markdown.

Blocks are chained in the order they run; a dashed line joins a copy to the first block of the same source.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

from elastic_ir.errors import printable
from elastic_ir.pictures.picture import Box, Picture, StagePicture, hex_colour
from elastic_ir.pictures.svg import GREY, described

#: Blocks that Mermaid's own limit of 500 lines has room for; of more in a row those without a break are drawn as one.
_MOST = 120


def dot(picture: Picture) -> str:
    """DOT: one cluster for each stage.

    >>> from elastic_ir import trace
    >>> from elastic_ir.pictures.picture import picture_of
    >>> from elastic_ir.zoo import cifar_resnet
    >>> print(dot(picture_of(trace(cifar_resnet(8)))).splitlines()[0])
    digraph "CifarResNet" {
    """
    lines = [
        f"digraph {_quoted(picture.name)} {{",
        f"  label={_quoted(described(picture))};",
        '  rankdir=LR; node [shape=box, style="rounded,filled", fontname="Helvetica", fontcolor=white];',
    ]
    for number, stage in enumerate(picture.stages):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f"    label={_quoted(_caption(stage))};")
        lines += [
            f'    {_id(number, box)} [label={_quoted(box.source or str(box.index))}, color="{_colour(stage, box)}", '
            f"tooltip={_quoted(box.path)}];"
            for box in stage.boxes
        ]
        lines.append("  }")
    lines += [
        f'  {name} [label="{name}", style=rounded, fontcolor="{GREY}", color="{GREY}"];'
        for name in filter(None, (picture.stem, picture.head))
    ]
    lines += [f"  {one} -> {other};" for one, other in _chain(picture, picture.stages)]
    lines += [
        f'  {one} -> {other} [style=dashed, constraint=false, color="{colour}"];'
        for one, other, colour in _copies(picture.stages)
    ]
    return "\n".join([*lines, "}", ""])


def mermaid(picture: Picture) -> str:
    """Mermaid: a flow chart with one group for each stage."""
    blocks = sum(len(stage.boxes) for stage in picture.stages)
    lines = ["flowchart LR", f"  %% {_plain(described(picture))}"]
    drawn = [stage if blocks <= _MOST else _run_together(stage) for stage in picture.stages]
    styles = []
    for number, stage in enumerate(drawn):
        lines.append(f'  subgraph s{number}["{_plain(_caption(picture.stages[number]))}"]')
        for box in stage.boxes:
            lines.append(f'    {_id(number, box)}["{_plain(box.source or str(box.index))}"]')
            styles.append(f"  style {_id(number, box)} fill:{_colour(stage, box)},stroke:none,color:#ffffff")
        lines.append("  end")
    lines += [f'  {name}(["{name}"])' for name in filter(None, (picture.stem, picture.head))]
    lines += [f"  {one} --> {other}" for one, other in _chain(picture, drawn)]
    lines += [f"  {one} -.-> {other}" for one, other, _ in _copies(drawn)]
    return "\n".join([*lines, *styles, ""])


def _run_together(stage: StagePicture) -> StagePicture:
    """A stage with each run of free blocks that follow each other in the source as one box, ``3-40``."""
    boxes: list[Box] = []
    last = None
    for box in stage.boxes:
        text = box.source or str(box.index)
        number = int(text) if text.isdigit() else None
        if (
            boxes
            and number is not None
            and last is not None
            and number == last + 1
            and box.role == boxes[-1].role
        ):
            first = (boxes[-1].source or str(boxes[-1].index)).partition("-")[0]
            boxes[-1] = Box(boxes[-1].index, boxes[-1].path, box.role, f"{first}-{text}", boxes[-1].copy)
        else:
            boxes.append(box)
        last = number
    order = tuple(dict.fromkeys(box.source for box in boxes))
    return StagePicture(stage.name, stage.output, stage.layers, stage.sparsity, tuple(boxes), order)


def _caption(stage: StagePicture) -> str:
    return f"{stage.name}, {stage.output}" if stage.output else stage.name


def _id(stage: int, box: Box) -> str:
    return f"b{stage}_{box.index}"


def _colour(stage: StagePicture, box: Box) -> str:
    return GREY if box.kept else hex_colour(stage.hue(box.source or str(box.index)))


def _chain(
    picture: Picture, stages: tuple[StagePicture, ...] | list[StagePicture]
) -> Iterator[tuple[str, str]]:
    """Each thing and what runs after it."""
    names = [_id(number, box) for number, stage in enumerate(stages) for box in stage.boxes]
    row = [name for name in (picture.stem, *names, picture.head) if name]
    yield from itertools.pairwise(row)


def _copies(stages: tuple[StagePicture, ...] | list[StagePicture]) -> Iterator[tuple[str, str, str]]:
    """Each block that another is the copy of, the copy, and their colour."""
    for number, stage in enumerate(stages):
        first: dict[str, Box] = {}
        for box in stage.boxes:
            if box.source and first.setdefault(box.source, box) is not box:
                yield _id(number, first[box.source]), _id(number, box), _colour(stage, box)


def _quoted(text: str) -> str:
    r"""A string of DOT, in which a backslash begins an escape.

    >>> print(_quoted('a"b\\n'))
    "a\"b\\n"
    """
    return json.dumps(printable(text), ensure_ascii=False)


def _plain(text: str) -> str:
    """Text for Mermaid, with its own entities for what would end a label or begin mark-up.

    >>> _plain('a"]<b>')
    'a#34;#93;#60;b#62;'
    """
    return "".join(f"#{ord(char)};" if char in '"<>[](){}|#;&%`\\' else char for char in printable(text))
