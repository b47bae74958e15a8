"""Tracing without side effects: the module is left as it was, and torch's remarks about tracing are kept from the user.

A forward that caches something (attention biases, masks) would keep a tracer's stand-ins in the live module, and fail
with them later. What torch.export and torch.fx warn of concerns programs to be run, and ours are only read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TORCH = os.path.dirname(torch.__file__)
_LIBRARY = sysconfig.get_path("stdlib")  # torch warns from inside context managers, in contextlib's name


@contextmanager
def without_side_effects(model: nn.Module) -> Iterator[None]:
    """Put back whatever attributes the modules had, and pass on only warnings that are not torch's own.

    What is written to standard error meanwhile is dropped: torch.export prints the program it had come to there.
    """
    before = [(module, _state(module)) for module in model.modules()]
    # a norm in training counts its batches while it is traced, in place; nothing larger is touched
    numbers = [b for b in model.buffers() if not (b.ndim or b.is_meta or b.is_inference())]
    counts = [(b, b._version, b.clone()) for b in numbers]
    # each of torch's loggers may have a level of its own; what is made meanwhile asks its parents
    names = ["torch", *(name for name in logging.root.manager.loggerDict if name.startswith("torch."))]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(record=True) as heard,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")  # a filter that makes errors of warnings is for what is passed on
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module, state in before:
            _restore(module, state)
        for buffer, version, value in counts:
            if buffer._version != version:
                buffer.copy_(value)
    for warning in heard:
        if not warning.filename.startswith((_TORCH, _LIBRARY)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _state(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute with, for a plain dict or list, a copy of what is in it."""
    return {
        name: (value, value.copy() if type(value) in (dict, list, set) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, state: dict[str, tuple[Any, Any]]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in state]:
        del now[name]
    for name, (value, content) in state.items():
        now[name] = value
        if isinstance(value, list) and content is not None:
            value[:] = content
        elif isinstance(value, (dict, set)) and content is not None:
            value.clear()
            value.update(content)
