"""Writing graphs: ``.pt`` and ``.safetensors`` files that are plain checkpoints for everyone else, tickets, folders.

What others do not know of rides along where they do not look: extra records in the zip of a ``.pt``, metadata and a
sidecar of masks beside a ``.safetensors``. Files appear under their name only when they are whole.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from elastic_ir import formats
from elastic_ir.emit import refuse_as_tensors, refuse_without_values
from elastic_ir.errors import EmitError, OutputError, SourceError
from elastic_ir.formats import ReadOptions, Stored
from elastic_ir.formats.files import atomic_folder, atomic_output, refuse_long_name, sync
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import UNKNOWN, described
from elastic_ir.tensors.lazy import InlineData, Mask, TensorData


def save(graph: Graph, path: str | os.PathLike[str], *, check: bool = True) -> list[Path]:
    """Write a graph by its target's extension and return the paths written.

    ``.pt``/``.pth``: a plain state dict (``torch.load(weights_only=True)`` and a strict load read it), with the graph
    and the masks as extra records. ``.safetensors``: the same, the masks in ``NAME.masks.safetensors``; torch is not
    imported unless the graph came from a live module. ``.onnx``: see :func:`elastic_ir.emit.onnx.save.save_onnx`.
    ``.ticket``: graph, bit-packed masks and only the surviving values; what is stored under a mask
    (``state_dict(masked=False)``) is **not** kept. No extension: a folder by the model's own ``save_pretrained``, or of
    a graph read by headers alone as :func:`elastic_ir.checkpoints.write.save_checkpoint` streams it. ``.py``: a
    readable definition of the network without its weights, see :func:`elastic_ir.emit.source.file.save_source`.
    ``.gguf``: what was read from such a file, see :mod:`elastic_ir.checkpoints.gguf.write`.
    ``check`` runs the module as :func:`elastic_ir.emit.module.to_module` does, or of a streamed folder compares
    names and shapes with the class that its config.json names; that what was planned is written is always checked.
    Raises EmitError and OutputError; what stood at the target then still stands there.
    """
    with described(graph):
        return _save(graph, Path(path), check)


def _save(graph: Graph, path: Path, check: bool) -> list[Path]:
    form = formats.format_named(path)
    if path.suffix == "" or (
        graph.origin.streamed and not formats.writable(path)
    ):  # Llama-3.1-8B is a folder's name
        form = next(each for each in formats.FOLDERS if each.name == graph.origin.folder_format)
    own = graph.origin.written_as
    if own and (form is None or own not in form.suffixes):
        raise OutputError(
            f"{path}: the tensors of {graph.name} are of types that its own format has, so it is written as {own}; "
            "give a name that ends so"
        )
    if form is None:
        known = ", ".join(formats.suffixes(formats.registered(), written=True))
        raise OutputError(
            f"{path.name}: the extension {path.suffix.lower()} cannot be written; use {known} or a folder name"
        )
    left = graph.origin.along() if form.name != graph.origin.folder_format else []
    graph.emitted = replace(
        graph.emitted, beside=(("note", f"left behind: {', '.join(left)}"),) if left else ()
    )
    return formats.write(form, graph, path, check)


def save_onnx_file(graph: Graph, path: Path, check: bool) -> list[Path]:
    """An ONNX file, and what lies beside it; see :func:`elastic_ir.emit.onnx.save.save_onnx`."""
    from elastic_ir.emit.onnx.save import save_onnx

    return list(save_onnx(graph, path, check=check).paths)


def save_python(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Python source; see :func:`elastic_ir.emit.source.file.save_source`."""
    from elastic_ir.emit.source.file import save_source

    return [save_source(graph, path, check=check)]


def save_stored(graph: Graph, path: Path, check: bool, write: Callable[[Path, Stored], object]) -> list[Path]:
    """Write a graph by a function that puts tensors, masks and a description into a file; for formats of others.

    ``write`` gets a temporary path beside ``path`` that ends as it does, and what to write: weights and buffers as
    they are emitted, zero where a mask is 0. The file gets its name when it is whole and, with ``check``, when the
    format's reader finds the names, shapes and masks in it that were planned. Raises EmitError, OutputError.
    """
    refuse_as_tensors(graph)
    module = _checked_module(graph, check)
    tensors = {name: weight.storage.emitted() for name, weight in graph.weights.items() if weight.persistent}
    stored = Stored(tensors, _masks(graph), json.dumps(_data(graph, module)))
    with atomic_output(path) as temporary:
        write(temporary, stored)
        form = formats.format_named(path)
        if check and form is not None and form.read is not None:
            try:
                found = formats.read(form, temporary, ReadOptions())
            except SourceError as error:
                raise EmitError(f"{path.name} cannot be read back: {error}") from error
            if isinstance(found, Stored):
                _compare({name: data.shape for name, data in found.tensors.items()}, graph, path)
                for name, mask in stored.masks.items():
                    if name not in found.masks or found.masks[name].bits != mask.bits:
                        raise EmitError(f"{path.name} does not hold the mask of {name}")
    return [path]


def _checked_module(graph: Graph, check: bool) -> Any:
    """The emitted module, run once if wanted, for its description; None where the graph has no network."""
    if not _has_module(graph):
        return None
    from elastic_ir.emit.module import module_to_describe

    return module_to_describe(graph, check)


def _has_module(graph: Graph) -> bool:
    """Whether there is a module to emit, of which a file says more than a state dict."""
    if graph.origin.streamed or graph.info.frontend == "onnx":
        return False  # its nodes are ONNX's, or it has none; a state dict needs no module
    return graph.origin is not UNKNOWN or graph.is_program


def _data_over(graph: Graph) -> dict[str, Any]:
    from elastic_ir.ir.serialise import graph_to_data

    return graph_to_data(graph)


def _data(graph: Graph, module: Any) -> dict[str, Any]:
    data = _data_over(graph)
    if module is not None and graph.origin is not UNKNOWN:
        data["module"] = _description(graph, module)
        inputs = graph.origin.inputs
        if inputs is not None:
            from elastic_ir.ir.example_inputs import describe_input

            data["inputs"] = {
                "args": describe_input(inputs.args),
                "kwargs": describe_input(dict(inputs.kwargs)),
                "guessed": inputs.guessed,
                "noise": inputs.noise,
            }
    return data


def _description(graph: Graph, module: Any) -> dict[str, Any]:
    """The module that is emitted, without ghosts: a reader gets the class back, also where it is not at hand now."""
    from elastic_ir.emit.module import as_described
    from elastic_ir.formats.pickles.description import describe_module

    plain = graph
    if graph.edits.ghosts:
        from elastic_ir.rewrite.ghosts import without_ghosts

        plain = without_ghosts(graph)
    described, unproven = as_described(plain)
    if described is not None:
        return {**describe_module(described), **({"unproven": unproven} if unproven else {})}
    return describe_module(module if plain is graph else plain.to_module(check=False))


def _data_of_outline(graph: Graph) -> dict[str, Any] | None:
    """The graph's record with the module as a file has stated it, if one has; without torch."""
    stated = graph.origin.stated
    if stated is None:
        return None
    from elastic_ir.emit.module.outlines import describe_outline

    module = describe_outline(graph)
    if module is None:
        return None
    data = {**_data_over(graph), "module": module}
    return data if stated.inputs is None else {**data, "inputs": dict(stated.inputs)}


def _write_described(graph: Graph, check: bool, write: Callable[[str], object]) -> None:
    """Write by a function that is given the graph's description, and check the module.

    Where a file has stated what the network's module is, that needs no torch: the check, which does, begins when all
    is written, and what it finds is written in place of what was expected, if that is something else.
    """
    early = _data_of_outline(graph)
    if early is not None:
        write(json.dumps(early))
        if not check:
            return
    data = _data(graph, _checked_module(graph, check))
    if data != early:
        write(json.dumps(data))


def _mask_records(graph: Graph) -> dict[str, bytes]:
    """An index of the masks and their packed bits, one bit for each weight."""
    from elastic_ir.formats.torch_zip import RECORDS

    index: dict[str, Any] = {}
    bits = bytearray()
    for name, mask in _masks(graph).items():
        index[name] = {"shape": list(mask.shape), "dtype": mask.dtype, "offset": len(bits)}
        bits += mask.bits
    if not index:
        return {}
    return {f"{RECORDS}masks.json": json.dumps(index).encode(), f"{RECORDS}masks.bin": bytes(bits)}


def _masks(graph: Graph) -> dict[str, Mask]:
    return {n: w.mask for n, w in graph.weights.items() if w.mask is not None and w.persistent}


def save_pt(graph: Graph, path: Path, check: bool) -> list[Path]:
    """A plain state dict for everyone else, with the graph and the masks as extra records."""
    from elastic_ir.formats.torch_zip import RECORDS, append_zip_records, write_state

    refuse_as_tensors(graph)
    emitted = graph.weights.emitted()
    state = {name: emitted[name] for name, weight in graph.weights.items() if weight.persistent}
    masks = _mask_records(graph)
    with atomic_output(path) as temporary:

        def write(description: str) -> None:
            write_state(temporary, state)
            append_zip_records(temporary, {f"{RECORDS}graph.json": description.encode(), **masks})

        _write_described(graph, check, write)
        if check:
            _check_state(temporary, graph)
    return [path]


def _check_state(path: Path, graph: Graph) -> None:
    """Read the written file's names and shapes back; EmitError where they are not the planned ones."""
    torch = sys.modules.get("torch")
    if torch is not None:  # who has it shows that it reads the file
        state: dict[str, Any] = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    else:
        from elastic_ir.formats.bin import read_bin

        state = dict(read_bin(path))
    _compare({name: tuple(tensor.shape) for name, tensor in state.items()}, graph, path)


def _compare(made: dict[str, tuple[int, ...]], graph: Graph, path: Path) -> None:
    planned = {name: weight.shape for name, weight in graph.weights.items() if weight.persistent}
    if made != planned:
        wrong = sorted(n for n in {*made, *planned} if made.get(n) != planned.get(n))[:3]
        raise EmitError(f"{path.name} does not hold what was planned, {', '.join(wrong)} for example")


def mask_file(path: Path) -> Path:
    """Where the masks of a ``.safetensors`` file lie: ``NAME.masks.safetensors``."""
    return path.with_name(f"{path.stem}.masks.safetensors")


def save_safetensors(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Tensors with the graph as metadata, and a sidecar of masks."""
    from elastic_ir.formats.mask_tie import TIE, tie_of
    from elastic_ir.formats.safetensors import read_safetensors, write_safetensors

    refuse_as_tensors(graph)
    tensors: dict[str, TensorData] = {
        n: w.storage.emitted() for n, w in graph.weights.items() if w.persistent
    }
    found = _masks(graph)
    if found:
        refuse_long_name(mask_file(path), "the file of masks")
    written = [path]
    with atomic_output(path) as temporary:

        def write(description: str) -> None:
            metadata = {"format": "pt", "elastic_ir.graph": description}
            write_safetensors(temporary, tensors, metadata)

        _write_described(graph, check, write)
        if check:
            _compare({name: held.shape for name, held in read_safetensors(temporary)[0].items()}, graph, path)
        if found:  # before the file itself gets its name: whoever sees the file finds its masks
            sync(temporary)  # what a full disk can stop is stopped before the masks are replaced
            with atomic_output(mask_file(path)) as sidecar:
                tie = {"format": "pt", TIE: tie_of([temporary])}
                write_safetensors(sidecar, {n: _mask_data(mask) for n, mask in found.items()}, tie)
            written.append(mask_file(path))
    if not found and os.path.exists(mask_file(path)):
        mask_file(path).unlink()  # of an earlier file of this name, whose masks these weights do not have
    return written


def save_ticket(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Graph, bit-packed masks and only the surviving values."""
    from elastic_ir.formats.ticket import ticket_shapes, write_ticket

    refuse_as_tensors(graph)
    weights = {name: weight.storage for name, weight in graph.weights.items() if weight.persistent}
    with atomic_output(path) as temporary:
        _write_described(graph, check, lambda description: write_ticket(temporary, weights, description))
        if check:
            _compare(ticket_shapes(temporary), graph, path)
    return [path]


def _mask_data(mask: Mask) -> TensorData:
    return InlineData(mask.shape, "bool", mask.array().tobytes())


def save_folder(graph: Graph, path: Path, check: bool) -> list[Path]:
    """A model folder, streamed from the one that was read by its headers, or by the model's own ``save_pretrained``."""
    if graph.origin.streamed:
        from elastic_ir.checkpoints.write import save_checkpoint

        return [save_checkpoint(graph, path, check=check)]
    from elastic_ir.extras import without_bars
    from elastic_ir.formats.mask_tie import TIE, tie_of
    from elastic_ir.formats.model_folder import MASKS
    from elastic_ir.formats.packed_masks import packed_masks
    from elastic_ir.formats.safetensors import write_safetensors

    refuse_without_values(graph)
    module: Any = (
        graph.to_module(check=check) if _has_module(graph) else None
    )  # copies, as save_pretrained wants
    if not hasattr(module, "save_pretrained"):
        replaced = graph.emitted.replaced
        why = f", and here a GraphModule stands for the class: {replaced}" if replaced else ""
        raise OutputError(
            f"{path}: a folder is written for transformers models{why}; give a name with .pt or .safetensors"
        )
    with atomic_folder(path) as temporary:
        with without_bars():
            module.save_pretrained(temporary)
        if _masks(graph):
            tensors, metadata = packed_masks(_masks(graph))
            tie = tie_of(sorted(temporary.glob("*.safetensors")))
            write_safetensors(temporary / MASKS, tensors, {**metadata, TIE: tie})
    return [path]
