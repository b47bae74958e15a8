"""References: networks whose depth another one is given. Their weights are never needed, so none are allocated."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import TraceError
from elastic_ir.formats.model_folder import LAYOUTS, layout_of
from elastic_ir.frontends.sources import build, is_name, load, on_meta
from elastic_ir.ir.graph import Graph

if TYPE_CHECKING:
    from torch import nn


def load_reference(reference: Any, source: Graph, **options: Any) -> Graph:
    """A reference as a graph: a graph, a module, or any source the command line takes.

    A name or a Hugging Face folder is built on the meta device (on the CPU where its constructor needs values). It is
    traced on the source's example inputs where it takes them, so that constants made of shapes agree. ``options`` are
    those of :func:`elastic_ir.frontends.sources.load`, for what has to be read as a source is.
    """
    from torch import nn

    if isinstance(reference, Graph):
        return reference
    if isinstance(reference, nn.Module):
        return _traced(reference, source, None)
    text = os.fspath(reference)
    if is_name(text):
        make = functools.partial(build, text)
        return _traced(on_meta(make), source, make)
    folder = _of_hub(text)
    if folder is not None:
        text = os.fspath(folder)
    if any((Path(text) / layout.config).is_file() for layout in LAYOUTS):
        make = functools.partial(_of_configuration, Path(text))
        return _traced(_of_configuration(Path(text), "meta"), source, make)
    return load(text, **options)


def _of_hub(text: str) -> Path | None:
    """The folder with the configuration of a model of the hub; None for other sources."""
    if os.path.exists(text):
        return None
    from elastic_ir.frontends.elsewhere import configuration_folder

    return configuration_folder(text)


def of_hub(text: str) -> nn.Module | None:
    """The network of a model of the hub, without its weights; None for other sources."""
    folder = _of_hub(text)
    return _of_configuration(folder) if folder is not None else None


def _of_configuration(folder: Path, device: str = "cpu") -> nn.Module:
    from elastic_ir.checkpoints.libraries.find import library_of
    from elastic_ir.checkpoints.read import read_configuration

    config = read_configuration(folder)
    made: nn.Module = library_of(config).described(config, f"{folder}/{layout_of(folder).config}", device)
    return made


def _traced(module: nn.Module, source: Graph, rebuild: Callable[[], nn.Module] | None) -> Graph:
    from elastic_ir.frontends.trace import trace
    from elastic_ir.tensors.torch_bridge import device_of

    training = getattr(source.origin.module, "training", None)
    if training is not None and rebuild is not None:
        module.train(training)  # constants of the mode (a dropout's) as the source has them
    inputs = source.origin.inputs
    graph = None
    if inputs is not None:
        moved = inputs.to(device_of(module))
        try:
            graph = trace(module, moved.args, moved.kwargs)
        except TraceError:
            graph = None  # it takes other inputs, a fixed image size for example
    if graph is None:
        graph = trace(module)
    if rebuild is not None:
        graph.origin = replace(graph.origin, rebuild=rebuild)
    return graph
