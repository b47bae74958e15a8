"""Python's collector of reference cycles, paused while a graph is made or read.

A graph of some 10,000 nodes is a million objects that live on, and each full collection walks all of them to find
nothing: a third of the time, which grows faster than the graph does.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


def uncollected(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """A function during which cycles are not collected, unless they are not anyhow; for what runs no network."""

    @functools.wraps(function)
    def paused(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return paused
