"""The page of a report: the built page of ``report/`` with a document in it; for files, and for notebooks as a frame.

The document stands in the page deflated and in base64, so that no name in it can be taken for mark-up, and the page's
own policy lets no script run but its own and nothing be fetched.
"""

from __future__ import annotations

import html
import importlib.resources
import os
from pathlib import Path

from elastic_ir.errors import OutputError, printable
from elastic_ir.formats.files import atomic_output
from elastic_ir.pictures.document import packed, text_of
from elastic_ir.pictures.schema import Document

PAGE, DATA = ".html", ".json"  #: suffixes of what a report is written as


def check_name(path: str | os.PathLike[str]) -> None:
    """OutputError for a name that is neither a page's nor that of a document."""
    if Path(path).suffix.lower() not in (PAGE, ".htm", DATA):
        raise OutputError(f"{path} names no report; use {PAGE}, or {DATA} for its document alone")


class Report:
    """A report of one network, or of two: shown in notebooks as it is, and written by :meth:`save`."""

    def __init__(self, document: Document) -> None:
        self.document = document

    @property
    def html(self) -> str:
        """The whole page."""
        page = (importlib.resources.files("elastic_ir.pictures") / "page.html").read_text("utf-8")
        head, _, rest = page.partition("{{TITLE}}")
        middle, _, tail = rest.partition("{{DOCUMENT}}")
        title = html.escape(printable(self.document["networks"][-1]["name"]))
        return f"{head}{title} \u00b7 ElasticIR{middle}{packed(text_of(self.document).encode())}{tail}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page (``.html``), or the document that it shows (``.json``).

        Raises OutputError for another suffix, or where the file cannot be written.
        """
        check_name(path)
        text = text_of(self.document) if Path(path).suffix.lower() == DATA else self.html
        with atomic_output(path) as made:
            made.write_text(text, "utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which can reach neither the notebook nor anything else."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" title="ElasticIR report" '
            'style="width:100%;height:760px;border:1px solid #8886;border-radius:8px"></iframe>'
        )

    def __repr__(self) -> str:
        names = " and ".join(printable(network["label"]) for network in self.document["networks"])
        return f"<Report of {names}; save(path) writes it>"
