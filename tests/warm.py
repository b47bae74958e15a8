"""A process that has imported what takes long, of which tests fork what has to be a process of its own.

There is one for each process that runs tests, and it starts with the first test that asks for it.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def context() -> ForkServerContext:
    """What starts processes that have imported what :mod:`tests.warm_imports` imports."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.warm_imports"])  # whoever is the first: it is all that there is
    return found
