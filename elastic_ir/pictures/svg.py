"""A picture as SVG: stages side by side, the source's blocks above, the result's below, copies joined to their sources.

It stands by itself: no script, no font, no style sheet, as pages that show foreign SVG demand. Text is of a grey that
reads on white and on black, so that one file does for light and dark pages.
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from elastic_ir.errors import printable
from elastic_ir.pictures.picture import Box, Picture, StagePicture, hex_colour, links_of

GREY = "#768089"  #: of all text and lines; at least 3.9 to 1 on white and on black
_FONT = "ui-sans-serif, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_WIDTH = 880  #: in pixels, unless there are more blocks than fit
_WIDEST, _NARROWEST = 25.0, 3.0  #: of a block with the gap behind it
_NUMBERED = 15.0  #: the narrowest block with a number in it
_END = 46.0  #: the box of stem or head
_PAD, _GAP = 12.0, 10.0  #: inside a stage, and between stages
_MARGIN = 52.0  #: for the words before the rows
_ROW = 26.0  #: the height of a block
_BEFORE, _AFTER = 56.0, 138.0  #: the tops of the two rows
_LEAST = 128.0  #: the narrowest stage, for its caption


def draw(picture: Picture) -> str:
    """The SVG's text."""
    step = _step(picture)
    after = _AFTER if picture.changed else _BEFORE
    ends = [(_END if name else 0.0) for name in (picture.stem, picture.head)]
    left = _MARGIN if picture.changed else 4.0
    parts: list[str] = []
    at = left
    if ends[0]:
        parts.append(_end(at, after, picture.stem))
        at += _END + _GAP
    for stage in picture.stages:
        width = _wide(stage, step)
        parts += _stage(stage, at, width, step, after, picture)
        at += width + _GAP
    if ends[1]:
        parts.append(_end(at, after, picture.head))
        at += _END + _GAP
    width, height = at - _GAP + 4, after + _ROW + 62
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" font-family="{_FONT}" font-size="12" role="img" aria-labelledby="title">',
            f'<title id="title">{_text(described(picture))}</title>',
            *_legend(picture, after, width),
            *parts,
            "</svg>",
            "",
        ]
    )


def described(picture: Picture) -> str:
    """What the picture shows, in a sentence: for those who cannot see it."""
    counts = ", ".join(
        f"{stage.name} {f'{len(stage.before)} to ' if picture.changed and stage.before else ''}{len(stage.boxes)}"
        for stage in picture.stages
    )
    made = f", made of {picture.source}" if picture.changed else ""
    return f"{_titled(picture)}{made}; blocks of each stage: {counts}"


def _titled(picture: Picture) -> str:
    depth = f", {picture.depth} layers deep" if picture.depth is not None else ""
    pruned = f", {picture.sparsity:.1%} pruned".replace("%", " %") if picture.sparsity else ""
    return f"{picture.name}{depth}{pruned}"


def _legend(picture: Picture, after: float, width: float) -> list[str]:
    lines = [_words(4, 18, _titled(picture), size=14, weight=600)]
    if picture.changed:
        lines.append(_words(width - 4, 18, f"made of {picture.source}", anchor="end"))
        lines.append(_words(4, _BEFORE + 17, "source"))
        lines.append(_words(4, after + 17, "result"))
    return lines


def _step(picture: Picture) -> float:
    """The width of a block with its gap, so that all stages fit where that is possible."""
    blocks = sum(max(len(stage.boxes), len(stage.before)) for stage in picture.stages)
    ends = sum(_END + _GAP for name in (picture.stem, picture.head) if name)
    room = _WIDTH - _MARGIN - ends - len(picture.stages) * (2 * _PAD + _GAP)
    return min(max(room / max(blocks, 1), _NARROWEST), _WIDEST)


def _wide(stage: StagePicture, step: float) -> float:
    return max(max(len(stage.boxes), len(stage.before)) * step + 2 * _PAD, _LEAST)


def _stage(
    stage: StagePicture, at: float, width: float, step: float, after: float, picture: Picture
) -> list[str]:
    gap = 4.0 if step > _NUMBERED else 1.0
    top = _BEFORE - 14 if picture.changed and stage.before else after - 14
    parts = [
        f'<rect x="{at:g}" y="{top:g}" width="{width:g}" height="{after + _ROW + 14 - top:g}" rx="8" '
        f'fill="{GREY}" fill-opacity="0.07" stroke="{GREY}" stroke-opacity="0.25"/>'
    ]
    firsts = [at + (width - count * step + gap) / 2 for count in (len(stage.before), len(stage.boxes))]
    if picture.changed:
        parts += _links(stage, firsts, step, gap, after)
        sources = {box.source for box in stage.boxes}
        kept = {box.source for box in stage.boxes if box.kept}
        for place, name in enumerate(stage.before):
            box = Box(
                place, f"source block {name}", "entry" if name in kept else "free", name, name not in sources
            )
            parts.append(
                _box(stage, box, firsts[0] + place * step, _BEFORE, step - gap, gone=name not in sources)
            )
    for box in stage.boxes:
        parts.append(_box(stage, box, firsts[1] + box.index * step, after, step - gap))
    middle = at + width / 2
    count = (
        f"{len(stage.before)} \u2192 {len(stage.boxes)}"
        if picture.changed and stage.before
        else str(len(stage.boxes))
    )
    pruned = f" \u00b7 {stage.sparsity:.0%} pruned".replace("%", " %") if stage.sparsity else ""
    name = f"{stage.name} \u00b7 {stage.output}" if stage.output and width > 160 else stage.name
    parts.append(_words(middle, after + _ROW + 34, name, anchor="middle", weight=600))
    blocks = "block" if count == "1" else "blocks"
    parts.append(_words(middle, after + _ROW + 51, f"{count} {blocks}{pruned}", anchor="middle", size=11))
    return parts


def _links(stage: StagePicture, firsts: list[float], step: float, gap: float, after: float) -> list[str]:
    """A curve from each block of the source to each that is made of it."""
    parts = []
    half = (step - gap) / 2
    top, bottom = _BEFORE + _ROW, after
    bend = (bottom - top) / 2
    for source, block in links_of(stage):
        start, end = firsts[0] + source * step + half, firsts[1] + block * step + half
        colour = GREY if stage.boxes[block].kept else hex_colour(stage.hue(stage.before[source]))
        parts.append(
            f'<path d="M{start:.1f} {top:g}C{start:.1f} {top + bend:g} {end:.1f} {bottom - bend:g} {end:.1f} '
            f'{bottom:g}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-opacity="0.75"/>'
        )
    return parts


def _box(stage: StagePicture, box: Box, x: float, y: float, width: float, *, gone: bool = False) -> str:
    """A block: its own or its source's colour, grey where it is kept, an outline where nothing of it is left."""
    source = box.source or str(box.index)
    colour = GREY if box.kept else hex_colour(stage.hue(source))
    fill = "none" if gone else colour
    dashed = ' stroke-dasharray="3 2"' if gone else ""
    told = f"{box.path}: {box.role}" + (f", of source block {box.source}" if box.source and not gone else "")
    drawn = (
        f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{_ROW:g}" rx="{min(4.0, width / 3):.1f}" '
        f'fill="{fill}" stroke="{colour}"{dashed}/>'
    )
    number = ""
    if width >= _NUMBERED - 4 and len(source) < 4:
        ink = GREY if gone else "#ffffff"
        number = (
            f'<text x="{x + width / 2:.1f}" y="{y + 17:g}" text-anchor="middle" font-size="11" font-weight="600" '
            f'fill="{ink}">{_text(source)}</text>'
        )
    return f"<g><title>{_text(told)}</title>{drawn}{number}</g>"


def _end(x: float, y: float, name: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{_END:g}" height="{_ROW:g}" rx="4" fill="none" stroke="{GREY}"/>'
        + _words(x + _END / 2, y + 17, name, anchor="middle", size=11)
    )


def _words(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: int = 400) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f"fill={quoteattr(GREY)}>{_text(text)}</text>"
    )


def _text(text: str) -> str:
    """Text of a name that may be anything: no mark-up, and no control character, which XML has no form for."""
    return escape(printable(text))
