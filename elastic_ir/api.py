"""The public face: functions that put the rooms together; each imports what it needs when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import OutputError, PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.safety.limits import allowing_blocks

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from elastic_ir.checkpoints.verify import Verified
    from elastic_ir.choices import Frontend
    from elastic_ir.pictures.page import Report
    from elastic_ir.plans.plan import Drop, Order, PlanGiven
    from elastic_ir.tensors.lazy import Mask

    #: Another network: a graph, a module, or any source that the command line takes.
    Reference: TypeAlias = Graph | torch.nn.Module | str | os.PathLike[str]
    #: Zeros and ones of a weight's shape.
    MaskGiven: TypeAlias = Mask | torch.Tensor | NDArray[np.generic]


def trace(
    model: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    masks: Mapping[str, MaskGiven] | None = None,
    *,
    frontend: Frontend = "auto",
    input_shape: Sequence[Sequence[int]] | None = None,
) -> Graph:
    """Read a module, or an exported program, into a graph; see :func:`elastic_ir.frontends.trace.trace`."""
    from elastic_ir.frontends.trace import trace as read

    return read(model, example_inputs, example_kwargs, masks, frontend=frontend, input_shape=input_shape)


def load(
    source: str | os.PathLike[str],
    arch: Reference | None = None,
    masks: Mapping[str, MaskGiven] | str | os.PathLike[str] | None = None,
    *,
    trust: Sequence[str] = (),
    mask_from_zeros: bool = False,
    input_shape: Sequence[Sequence[int]] | None = None,
    at: Sequence[str] | str | None = None,
    unit: int | None = None,
    headers_only: bool = False,
    key: str | None = None,
    pretrained: bool = False,
    component: str | None = None,
    variant: str | None = None,
) -> Graph:
    """Read any source that the command line takes; see :func:`elastic_ir.frontends.sources.load`.

    ``at`` and ``unit`` are as for :func:`stretch`.
    """
    from elastic_ir.frontends.sources import load as read

    graph = read(
        source,
        arch,
        masks,
        trust=(trust,) if isinstance(trust, str) else trust,  # a word would count as its letters
        mask_from_zeros=mask_from_zeros,
        input_shape=input_shape,
        headers_only=headers_only,
        key=key,
        pretrained=pretrained,
        component=component,
        variant=variant,
    )
    graph = graph.at(*((at,) if isinstance(at, str) else at)) if at else graph
    return graph.with_unit(unit) if unit is not None else graph


def _reference(like: Reference | None, graph: Graph) -> Graph | None:
    if like is None or isinstance(like, Graph):
        return like
    from elastic_ir.frontends.reference import load_reference

    return load_reference(like, graph)


def _seen(graph: Graph, at: Sequence[str] | str | None, unit: int | None) -> Graph:
    """The graph itself, or a copy of it with other stages or another unit: what a caller gave stays as it was."""
    if not isinstance(graph, Graph):
        raise PlanError(f"give a graph, of trace(module) or load(source), not a {type(graph).__name__}")
    if at:
        graph = graph.at(*((at,) if isinstance(at, str) else at))
    if unit is None:
        return graph
    graph.structure  # noqa: B018 - discovered once, and copied along
    return graph.copy().with_unit(unit)


def _kept(keep_beside: Sequence[str] | str | None) -> tuple[str, ...]:
    """The names of what stays as it is; PlanError where one is empty."""
    if keep_beside is None or keep_beside == ():
        return ()
    from elastic_ir.plans.keep_beside import listed_names

    return listed_names(keep_beside)


def stretch(
    graph: Graph,
    to_depth: int | None = None,
    *,
    to_stages: Sequence[int] | Mapping[str, int] | str | None = None,
    to_units: int | None = None,
    like: Reference | None = None,
    plan: PlanGiven | None = None,
    order: Order = "append",
    replicate: Sequence[int] | None = None,
    at: Sequence[str] | str | None = None,
    unit: int | None = None,
    others: Mapping[str, Graph] | None = None,
    scale: Mapping[str, float] | str | None = None,
    zero: Sequence[str] | Mapping[str, Sequence[str]] | str | None = None,
    keep_beside: Sequence[str] | str | None = None,
    max_blocks: int | None = None,
) -> Graph:
    """A deeper graph: repeatable units cloned with their weights and masks. The graph given stays as it was.

    Exactly one of ``to_depth`` (weight layers), ``to_stages`` (blocks for each stage, or by name), ``to_units``,
    ``like`` (a graph, module or source whose counts to match) and ``plan`` says how deep. ``at`` names the lists that
    are changed in place of the stages that were found, see :meth:`Graph.at`; ``unit`` overrides how many blocks are
    cloned together.

    ``others`` are networks whose layers the plan names: ``plan="0-15,b/6-21", others={"b": graph}``, where names,
    shapes and dtypes agree. ``scale`` multiplies tensors of the copies, by the names of modules or tensors inside a
    block (``{"o_proj": 0.5}``), ``zero`` sets such tensors to zero; ``zero="auto"`` those that close the residual
    branches, so that each copy starts as the identity. Raises PlanError.

    ``keep_beside`` names what stays as it is though something beside it changes its count, where a change is refused
    for it: numbered lists, tensors and, in checkpoint folders, entries of the configuration. ``max_blocks`` allows more
    blocks of all stages together than 10,000.

    Examples:
        >>> from elastic_ir.zoo import cifar_resnet
        >>> deeper = stretch(trace(cifar_resnet(20)), to_depth=32)
        >>> [len(stage) for stage in deeper.stages]
        [5, 5, 5]
    """
    from elastic_ir.passes import Stretch

    whole = _seen(graph, at, unit)
    reference = _reference(like, graph)
    if zero == "auto" and not len(graph):
        from elastic_ir.frontends.residual_ends import residual_ends

        zero = residual_ends(graph)
    kept = _kept(keep_beside)
    with allowing_blocks(max_blocks):
        return Stretch(
            to_depth,
            to_stages,
            to_units,
            reference,
            plan,
            order,
            replicate,
            others,
            scale,
            zero,
            keep_beside=kept,
        ).run(whole)


def squeeze(
    graph: Graph,
    to_depth: int | None = None,
    *,
    to_stages: Sequence[int] | Mapping[str, int] | str | None = None,
    to_units: int | None = None,
    like: Reference | None = None,
    plan: PlanGiven | None = None,
    drop: Drop | Sequence[int] = "tail",
    at: Sequence[str] | str | None = None,
    unit: int | None = None,
    keep_beside: Sequence[str] | str | None = None,
    max_blocks: int | None = None,
) -> Graph:
    """A shallower graph: repeatable units deleted; ``drop`` is "tail", "even" or block indices. Raises PlanError.

    ``unit`` overrides how many blocks are deleted together: ``unit=1`` lets one block of Swin's pairs go. ``at``,
    ``keep_beside`` and ``max_blocks`` are as for :func:`stretch`.

    Examples:
        >>> from elastic_ir.zoo import cifar_resnet
        >>> squeeze(trace(cifar_resnet(32)), to_depth=20).depth
        20
    """
    from elastic_ir.passes import Squeeze

    whole = _seen(graph, at, unit)
    kept = _kept(keep_beside)
    with allowing_blocks(max_blocks):
        squeeze = Squeeze(
            to_depth, to_stages, to_units, _reference(like, graph), plan, drop, keep_beside=kept
        )
        return squeeze.run(whole)


def undo(graph: Graph, *, keep_beside: Sequence[str] | str | None = None) -> Graph:
    """The network as it was before its last change of depth, by the record of the file that it was read from.

    Each layer of the source is taken from its first copy that was not scaled; names, masks, tensors with an entry for
    each layer and, in checkpoint folders and GGUF files, the configuration go back too. What :func:`save` writes has
    one change less in its record. Raises PlanError where there is no record, and with a list of what is missing where
    the source's layers are not all there. ``keep_beside`` is as for :func:`stretch`.

    Examples:
        >>> undo(load("llama-32", headers_only=True))  # doctest: +SKIP
    """
    from elastic_ir.passes.depth.undo import Undo

    return Undo(keep_beside=_kept(keep_beside)).run(_seen(graph, None, None))


def follow(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    trained_on: str | None = None,
    component: str | None = None,
) -> Path:
    """Write an adapter of PEFT for a base whose layers were changed, and return its folder.

    ``base`` is a folder that :func:`save` or the command line has written, here, behind a URL or on the hub; its record
    states which layer each layer was made from, and each gets the adapter's tensors of that one. ``component`` names
    the network that changed in a folder of several. ``trained_on`` names which model of a record of several changes the
    adapter was trained on, where its own settings do not. Raises SourceError where the adapter is none of that base,
    PlanError where it cannot follow, OutputError where ``out`` cannot be written.

    Examples:
        >>> follow("my-lora", "llama-32", "my-lora-32")  # doctest: +SKIP
    """
    from elastic_ir.checkpoints.adapters.write import plan_follow, save_follow

    return save_follow(plan_follow(adapter, base, trained_on, component), Path(out))


def merge(recipe: str | os.PathLike[str], *, keep_beside: Sequence[str] | str | None = None) -> Graph:
    """What a mergekit recipe of slices describes, by the passthrough method; see
    :mod:`elastic_ir.passes.depth.slices_file`.

    Its models are local folders, read by their headers; :func:`save` streams the result to a folder. Raises PlanError,
    with the line, for what would need more than copying and scaling. ``keep_beside`` is as for :func:`stretch`.
    """
    from elastic_ir.passes.depth.slices_file import read_slices

    slices = read_slices(recipe)
    models = [load(folder, headers_only=True) for folder in slices.models]
    return slices.merged(models, _kept(keep_beside))


def with_weights(graph: Graph, trained: torch.nn.Module | Mapping[str, torch.Tensor]) -> Graph:
    """The graph with the tensors of a trained module or state dict.

    See :func:`elastic_ir.emit.module.trained.with_weights`.
    """
    from elastic_ir.emit.module.trained import with_weights as fill

    return fill(graph, trained)


def save(graph: Graph | torch.nn.Module, path: str | os.PathLike[str], *, check: bool = True) -> list[Path]:
    """Write a graph, or a module as it is traced: ``.pt``, ``.safetensors``, ``.onnx``, ``.ticket``, ``.py``, a folder.

    See :func:`elastic_ir.emit.files.save`; for ONNX with options, :func:`elastic_ir.emit.onnx.save.save_onnx`.
    """
    if isinstance(graph, str | os.PathLike) or not isinstance(path, str | os.PathLike):
        given = f"({type(graph).__name__}, {type(path).__name__})"
        raise OutputError(f"save takes a graph or a module, and then the path, not {given}")
    from elastic_ir.emit.files import save as write

    return write(graph if isinstance(graph, Graph) else trace(graph), path, check=check)


def save_training(
    graph: Graph,
    path: str | os.PathLike[str],
    source: str | os.PathLike[str],
    before: Graph,
    key: str | None = None,
    *,
    check: bool = True,
) -> list[Path]:
    """Write a training checkpoint in the layout of its source: weights, optimizers and averages follow, the rest stays.

    ``source`` is the file of ``torch.save``, or the folder of Accelerate's, that ``before`` was read from and ``graph``
    made of; ``key`` names its network where it holds several. What became of its parts stands in
    ``graph.emitted.beside``. With ``check`` a network that was traced is run first. Raises SourceError for a file of
    more than tensors and plain data, EmitError for an optimizer that does not fit, OutputError for masks, which have no
    place in such a file.
    """
    from elastic_ir.emit.training_file import parameter_names, save_training_file
    from elastic_ir.frontends.training_state import read_training_state

    if Path(source).is_dir():
        from elastic_ir.checkpoints.training_folder import training_folder
        from elastic_ir.emit.training_folder import save_training_folder

        folder = training_folder(Path(source), key)
        if check and graph.is_program:
            graph.to_module()
        return save_training_folder(graph, Path(path), folder, before)
    state = read_training_state(source, key)
    if check and graph.is_program:
        graph.to_module()
    return save_training_file(graph, path, state.held, state.at, parameter_names(before), state.key)


def report(
    network: Reference,
    against: Reference | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    values: bool | None = None,
) -> Report:
    """A page that shows a network, or two side by side; a notebook shows what is returned.

    Networks are graphs, modules, or sources as the command line takes them; of folders and GGUF files headers alone are
    read. ``out`` is a file to write it to, ``.html``, or ``.json`` for its document alone. ``values`` says whether
    tensors are read for histograms; None reads those that are at hand and not larger than 256 MiB. Raises OutputError.
    """
    from elastic_ir.pictures import report_of

    def seen(given: Reference) -> tuple[Graph, str]:
        if isinstance(given, Graph):
            return given, ""
        if isinstance(given, str | os.PathLike):
            return load(given, headers_only=not values), os.fspath(given)
        return trace(given), ""

    graph, label = seen(network)
    other, name = seen(against) if against is not None else (None, "")
    made = report_of(graph, other, label=label, other=name, values=values)
    if out is not None:
        made.save(out)
    return made


def verify_checkpoint(
    folder: str | os.PathLike[str],
    against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    hashes: bool = False,
    check: bool = True,
    component: str | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Verified:
    """Compare a checkpoint folder with its sources; see :mod:`elastic_ir.checkpoints.verify`."""
    from elastic_ir.checkpoints.verify import verify_checkpoint as verify

    given = [against] if isinstance(against, str | os.PathLike) else against
    return verify(
        os.fspath(folder), [os.fspath(path) for path in given], hashes=hashes, check=check, component=component,
        tell=tell,
    )  # fmt: skip
