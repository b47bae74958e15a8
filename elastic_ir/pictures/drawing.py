"""Writing a picture of a network to a file, in the form that the file's name asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from elastic_ir.errors import OutputError
from elastic_ir.formats.files import atomic_output
from elastic_ir.ir.graph import Graph
from elastic_ir.pictures.picture import Picture, picture_of
from elastic_ir.pictures.svg import draw
from elastic_ir.pictures.text_graphs import dot, mermaid

#: How a picture is made, by the file's suffix.
FORMS: dict[str, Callable[[Picture], str]] = {
    ".svg": draw,
    ".dot": dot,
    ".gv": dot,
    ".mermaid": mermaid,
    ".mmd": mermaid,
}


def check_name(path: str | os.PathLike[str]) -> None:
    """OutputError for a name whose suffix is none of a drawing's."""
    if Path(path).suffix.lower() not in FORMS:
        raise OutputError(f"{path} names no kind of drawing; use one of {', '.join(FORMS)}")


def save_drawing(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """Draw a graph's stages and blocks into a file: ``.svg``, ``.dot`` or ``.mermaid``.

    Raises OutputError for another suffix or where the file cannot be written, StructureError where nothing repeats.
    """
    check_name(path)
    text = FORMS[Path(path).suffix.lower()](picture_of(graph))
    with atomic_output(path) as made:
        made.write_text(text, "utf-8")
    return Path(path)
