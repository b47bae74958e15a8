"""Jobs: pieces of a study with a name that follows from their content, so that none is ever done twice.

A job is a kind of work, its options, and the jobs whose results it needs. Its key is a hash of all three, down to the
first ones; two studies that want the same training share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: The role of a ticket of which only the sparsity is used: its cost is not the reader's.
SPARSITY = "sparsity"
#: A job's kind and the network that it works on.
Sort = tuple[str, str]
#: Part of every key. It changes when the same options come to mean another computation.
VERSION = 1


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work; ``needs`` maps roles to the jobs whose folders it reads."""

    kind: str
    options: Mapping[str, Any]  #: plain data (what JSON can hold)
    needs: Mapping[str, Job] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The kind and twelve hexadecimal digits of the hash of all that decides the result."""
        content = {
            "version": VERSION,
            "options": self.options,
            "needs": {role: job.key for role, job in sorted(self.needs.items())},
        }
        text = json.dumps([self.kind, content], sort_keys=True, separators=(",", ":"))
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @cached_property
    def sort(self) -> Sort:
        """What jobs that take about the same time have in common: their kind, and the network that they work on."""
        network = self.options.get("network")
        return self.kind, "" if network is None else json.dumps(network, sort_keys=True)

    def spec(self) -> dict[str, Any]:
        """The job as plain data, for another process: its needs by their keys."""
        return {
            "key": self.key,
            "kind": self.kind,
            "options": dict(self.options),
            "needs": {role: job.key for role, job in self.needs.items()},
        }


def in_order(wanted: Iterable[Job], without: str = "") -> list[Job]:
    """All jobs that are needed for those wanted, each once, every job behind what it needs; but not in one role."""
    found: dict[str, Job] = {}

    def visit(job: Job) -> None:
        if job.key in found:
            return
        for role, needed in job.needs.items():
            if role != without:
                visit(needed)
        found[job.key] = job

    for job in wanted:
        visit(job)
    return list(found.values())
