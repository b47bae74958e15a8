"""A run of the command in a process of its own, for tests that kill it."""

from __future__ import annotations

import contextlib
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from elastic_ir.checkpoints import read as reading
from elastic_ir.checkpoints import resumable as partial
from elastic_ir.checkpoints import shards
from elastic_ir.checkpoints import write as checkpoint
from elastic_ir.cli import resize
from elastic_ir.cli.app import elastic_ir

#: Imported before a run begins, so that most of it is writing.
EARLY = (resize, checkpoint, partial, reading)


def command(begun: Connection, arguments: list[str], pause: float) -> None:
    """Say that it begins, run, and say so whenever a file is begun; ``pause`` in seconds is made before each."""
    write = shards.__dict__["write_safetensors"]

    def telling(*arguments: Any) -> None:
        with contextlib.suppress(OSError):  # nobody may wait for it
            begun.send(None)
        time.sleep(pause)
        write(*arguments)

    shards.__dict__["write_safetensors"] = telling
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115  until the process ends
    begun.send(None)
    elastic_ir(arguments)
