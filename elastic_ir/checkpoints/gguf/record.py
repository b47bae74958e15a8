"""The record in a GGUF file, the entry ``elastic_ir.record``: a folder's ``elastic_ir.json``. No torch here."""

from __future__ import annotations

from elastic_ir.checkpoints.record import Step, steps_of
from elastic_ir.errors import SourceError
from elastic_ir.formats.gguf.header import STRING, Header
from elastic_ir.safety.limits import RECORD_BYTES

RECORD = "elastic_ir.record"


def read_steps(head: Header) -> list[Step]:
    """The steps that led to a file, the oldest first; none where it has no record. SourceError where it is damaged."""
    entry = head.entries.get(RECORD)
    if entry is None:
        return []
    where = f"{RECORD} of {head.path}"
    if entry.kind != STRING or entry.count is not None or entry.end - entry.at > RECORD_BYTES:
        raise SourceError(f"{where} is damaged: it is not a text, or too long for one")
    return steps_of(head.read(entry)[8:], where)
