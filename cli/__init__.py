"""The command line. This file stays tiny: it is imported before anything is known about what is wanted."""

from __future__ import annotations

import gc
import io
import sys


def main() -> None:
    """What the ``elastic-ir`` program runs."""
    # torch makes a million objects that stay: looking through them for garbage every 700th takes an eighth of its
    # import, and half of what is done after it
    gc.set_threshold(100_000, 10, 10)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name that the terminal's encoding lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    # "app" and not "main": importing a module of that name would put it in this function's place.
    from elastic_ir.cli.app import elastic_ir

    elastic_ir.main(prog_name="elastic-ir")
