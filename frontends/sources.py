"""Sources: whatever the command line takes, read into a graph. Torch is imported only where a source needs it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir import formats
from elastic_ir.errors import ElasticError, MaskError, SourceError
from elastic_ir.formats import ReadOptions, Stored
from elastic_ir.formats.files import parse_json
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import described
from elastic_ir.safety.limits import refuse_special
from elastic_ir.tensors.lazy import Mask, TensorData

if TYPE_CHECKING:
    from torch import nn

    from elastic_ir.formats.hub_cache import HubName
    from elastic_ir.formats.model_folder import Awaited

#: What has a library's factory give its trained weights.
PRETRAINED: Mapping[str, Mapping[str, Any]] = {
    "timm": {"pretrained": True},
    "torchvision": {"weights": "DEFAULT", "progress": False},
}
Shapes = Sequence[Sequence[int]] | None


def load(
    source: str | os.PathLike[str],
    arch: Any = None,
    masks: Any = None,
    *,
    trust: Sequence[str] = (),
    mask_from_zeros: bool = False,
    input_shape: Shapes = None,
    headers_only: bool = False,
    key: str | None = None,
    pretrained: bool = False,
    component: str | None = None,
    variant: str | None = None,
) -> Graph:
    """Read a source: a file of a registered format, a Hugging Face folder, or a name.

    Formats are those of :mod:`elastic_ir.formats`, chosen by a file's suffix, else by its first bytes, else
    PyTorch's. Names are ``ORG/NAME`` or ``hf:ORG/NAME`` of a model on the hub, also ``@REVISION``, if no path of that
    name exists, and of a GGUF file on it ``ORG/NAME:QUANT`` or ``hf:ORG/NAME/FILE.gguf``; ``timm:NAME`` and
    ``torchvision:NAME``, with the library's trained weights if ``pretrained``; and ``package.module:factory``. A URL
    (``s3://...``) leads to a folder or a file, of which no more is fetched than is needed if its format allows that.

    ``arch`` names the network of a bare state dict (a source, a module or a graph); ``masks`` is a mask file or a
    mapping of names to 0/1 tensors; ``mask_from_zeros`` takes exact zeros in prunable weights as pruned.
    ``headers_only`` reads a folder of safetensors by its headers, without torch and without its network: names and
    shapes show the structure, and :func:`save` streams the tensors from folder to folder; a network of a name is built
    without values, and tensors of a ``.pt`` are not compared with their checksums. ``key`` selects one of several state
    dicts of a ``.pt``, with dots where it is nested; what is left behind is listed in ``graph.info.left_behind``.
    ``variant`` selects weights of a folder (``fp16`` for ``model.fp16.safetensors``); without it those without a
    variant are read, or the only ones. ``component`` names the network of a pipeline of diffusers, or of a model of
    sentence-transformers, by its folder; it is written with all the others. Raises SourceError, MaskError, TraceError.
    """
    if not isinstance(source, str | os.PathLike):
        raise SourceError(
            f"load reads a file, a folder or a name, not a {type(source).__name__}; for a module use trace(module)"
        )
    text = os.fspath(source)
    path = Path(text)
    beside = masks is None  # masks that are given replace those that lie beside the weights
    options = ReadOptions(arch, trust, input_shape, beside, key, component, variant, headers_only)
    named = is_name(text)
    if pretrained and not (named and text.partition(":")[0] in PRETRAINED):
        raise SourceError(f"{text}: trained weights are chosen for timm:NAME and torchvision:NAME alone")
    if named:
        if key is not None:
            raise _one_network(text, key)
        _refuse_choice(f"{text} is no folder", variant, component)
        make = functools.partial(build, text, **(PRETRAINED[text.partition(":")[0]] if pretrained else {}))
        meta = headers_only and not (mask_from_zeros or pretrained)
        graph = traced(on_meta(make) if meta else make(), input_shape)
    else:
        refuse_special(path)
        if path.is_file():
            _refuse_choice(f"{text} is a file", variant, component)
        if path.exists():
            graph = _read(path, options)
        else:
            graph = _read_elsewhere(text, options)
    if masks is not None:
        attach(graph, _mask_mapping(masks))
    if mask_from_zeros:
        _masks_from_zeros(graph)
    return graph


def _read_elsewhere(text: str, options: ReadOptions) -> Graph:
    """Read a source that is no path here: a model of the hub, or behind a URL. SourceError says what else it may be."""
    from elastic_ir.frontends.elsewhere import hub_graph, remote_graph

    name = refuse_absent(text)
    if name is None:
        return remote_graph(text, options)
    if options.key is not None:
        raise _one_network(text, options.key)
    if name.is_gguf:
        _refuse_choice(f"{text} is a file", options.variant, options.component)
    return hub_graph(name, options)


def refuse_absent(text: str) -> HubName | None:
    """SourceError where a source is neither here, nor a name, nor a URL; torch is not imported for it.

    Returns the name of a model of the hub.
    """
    if is_name(text) or os.path.exists(text):
        return None
    from elastic_ir.formats.remote import is_url
    from elastic_ir.frontends.elsewhere import on_hub, refuse_missing
    from elastic_ir.user_functions import written_as_file

    if (hint := written_as_file(text)) is not None:
        raise SourceError(f"{text} does not exist; a factory is named by its module, here {hint}")
    name = on_hub(text)
    if is_url(text):
        return None
    if name is None:
        refuse_missing(text)
        raise SourceError(f"{text} does not exist")
    return name


def is_name(text: str) -> bool:
    """Whether a source is a name of a factory, not a path, a model of the hub or a URL."""
    head, colon, tail = text.partition(":")
    if os.path.splitdrive(text)[0]:  # on Windows C:m.pt, also where there is no such file
        return False
    named = bool(colon and head and tail) and "/" not in head and "\\" not in head
    return named and head != "hf" and not tail.startswith("//") and not Path(text).exists()


def build(text: str, **arguments: Any) -> nn.Module:
    """The module that a name stands for, made with these arguments; SourceError says what is missing, or how it failed.

    A factory is looked for in the working folder too, see :mod:`elastic_ir.user_functions`.
    """
    from torch import nn

    from elastic_ir import user_functions
    from elastic_ir.extras import import_extra

    package, _, name = text.partition(":")
    if package == "timm":
        timm = import_extra("timm", "timm", text)
        if arguments.get("pretrained"):
            from elastic_ir.frontends.elsewhere import trained

            with trained(text):
                made = timm.create_model(name, **arguments)
        else:
            try:
                made = timm.create_model(name, **{"pretrained": False, **arguments})
            except RuntimeError as error:
                raise SourceError(f"timm has no model {name!r} ({error})") from error
    elif package == "torchvision":
        models = import_extra("torchvision.models", "torchvision", text)
        try:
            models.get_model_builder(name)
        except ValueError as error:
            raise SourceError(f"torchvision has no model {name!r}") from error
        if arguments.get("weights"):
            from elastic_ir.frontends.elsewhere import trained

            with trained(text):
                made = models.get_model(name, **arguments)
        else:
            made = models.get_model(name, **{"weights": None, **arguments})
    else:
        try:
            factory = user_functions.find(text)
        except (ImportError, ValueError) as error:
            from elastic_ir.frontends.elsewhere import refuse_scheme

            refuse_scheme(text)
            why = f"{package} cannot be imported ({error})"
            if isinstance(error, ModuleNotFoundError):
                why += "; install it, or put its folder on PYTHONPATH"
            raise SourceError(why) from error
        except AttributeError:
            factory = None
        if not callable(factory):
            raise SourceError(f"{package} has no factory {name!r}")
        made = user_functions.call(factory, text, SourceError, arguments)
    if not isinstance(made, nn.Module):
        raise SourceError(f"{text} returns a {type(made).__name__}, not a torch.nn.Module")
    return made


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A network without values, or with them where its constructor reads some (a rate from a tensor)."""
    import torch

    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, ElasticError):
        return make()


def traced(model: nn.Module, input_shape: Shapes) -> Graph:
    """A module's graph, on inputs of these shapes."""
    from elastic_ir.frontends.trace import trace

    return trace(model, input_shape=input_shape)


def _architecture(arch: Any, trust: Sequence[str]) -> nn.Module:
    """The module that ``arch`` stands for: a name, a saved module, a module, or a traced graph's."""
    from torch import nn

    if isinstance(arch, nn.Module):
        return arch
    if isinstance(arch, Graph):
        found = arch.origin.module
    else:
        text = os.fspath(arch)
        from elastic_ir.frontends.reference import of_hub

        found = build(text) if is_name(text) else of_hub(text) or load(text, trust=trust).origin.module
    if found is None:
        raise SourceError("the architecture given holds no network, only a state dict")
    return found


# -- files -------------------------------------------------------------------------------------------------------------


def _one_network(source: str, key: str) -> SourceError:
    return SourceError(
        f"{source} holds one network, and key={key!r} chooses among several of a .pt; leave it out"
    )


def _refuse_choice(what: str, variant: str | None, component: str | None) -> None:
    """SourceError where something is chosen of what holds no choice."""
    if variant is not None:
        raise SourceError(f"{what}; variant={variant!r} chooses among the weights of a folder")
    if component is not None:
        raise SourceError(f"{what}; component={component!r} chooses among the networks of a folder")


def _read(path: Path, options: ReadOptions) -> Graph:
    """Read a folder, or a file in its format; a file without a known suffix in the format that its first bytes show."""
    if path.suffix in (".json", ".bin") or formats.SAFETENSORS.names(path):
        from elastic_ir.frontends.elsewhere import refuse_part

        refuse_part(path)
    form = formats.format_of(path)
    if options.key is not None and form is not None and not form.several:
        raise _one_network(os.fspath(path), options.key)
    try:
        return read_as(form or formats.PYTORCH, path, options)
    except SourceError as error:
        if form is None and path.suffix and path.is_file():
            known = ", ".join(formats.suffixes(formats.registered(), written=False))
            raise SourceError(f"{error}; networks are read from {known} files") from error
        raise


def read_as(form: formats.Format, path: Path, options: ReadOptions) -> Graph:
    """Read a file or folder in a format."""
    found = formats.read(form, path, options)
    if isinstance(found, Graph):
        return found
    from elastic_ir.frontends.masks import masks_from_state

    tensors, pruned = masks_from_state(dict(found.tensors))
    return network_of(Stored(tensors, {**pruned, **found.masks}, found.graph), path, options)


def network_of(found: Stored, path: Path, options: ReadOptions) -> Graph:
    """The graph of what a file holds: over the architecture given, by the file's own description, or by names."""
    if options.arch is not None:
        from elastic_ir.frontends.over_architecture import over_architecture

        network = traced(_architecture(options.arch, options.trust), options.input_shape)
        graph = over_architecture(network, found.tensors, path.name)
    else:
        graph = _described(found.graph, found.tensors, options.trust, path)
    attach(graph, found.masks)
    return graph


def read_onnx(path: Path, options: ReadOptions) -> Graph:
    """An ONNX file; see :func:`elastic_ir.frontends.onnx.graph.load_onnx`."""
    from elastic_ir.frontends.onnx.graph import load_onnx

    return load_onnx(path, options.input_shape, options.elsewhere)


def read_safetensors_file(path: Path, options: ReadOptions) -> Graph:
    """A ``.safetensors`` file, and the masks that lie beside it."""
    from elastic_ir.formats.dcp.shards import refuse_shard
    from elastic_ir.formats.safetensors import read_safetensors
    from elastic_ir.frontends.masks import masks_from_state

    distant = options.distant(path)
    tensors, metadata = read_safetensors(path, distant=distant)
    refuse_shard(path, metadata)
    named, pruned = masks_from_state(dict[str, TensorData](tensors))
    sidecar = path.with_name(f"{path.stem}.masks.safetensors")
    graph = network_of(Stored(named, pruned, metadata.get("elastic_ir.graph")), path, options)
    if distant is None and os.path.exists(sidecar) and options.masks_beside:
        attach(graph, _masks_beside(sidecar, [path]))
    return graph


def read_ticket_file(path: Path, options: ReadOptions) -> Graph:
    """A ``.ticket`` file, whose names are meant as they stand."""
    from elastic_ir.formats.ticket import read_ticket

    ticket = read_ticket(path, options.distant(path))
    return network_of(Stored(ticket.tensors, ticket.read_masks(), ticket.graph), path, options)


def _described(
    text: str | bytes | None, tensors: Mapping[str, TensorData], trust: Sequence[str], path: Path
) -> Graph:
    """The graph that a file's record describes, or what names and shapes alone show."""
    if text is None:
        from elastic_ir.checkpoints.names import graph_of_tensors

        return graph_of_tensors(path.stem, tensors)
    try:
        data = parse_json(text)
    except ValueError as error:
        place = "its metadata" if isinstance(text, str) else "it"
        raise SourceError(f"{path.name}: the graph in {place} is damaged ({error})") from error
    return _graph_of_file(data, tensors, trust, path)


def _graph_of_file(data: Any, tensors: Mapping[str, TensorData], trust: Sequence[str], path: Path) -> Graph:
    """The graph that we wrote: in its class where that can be imported, else over its nodes."""
    from elastic_ir.ir.serialise import graph_from_data

    graph = graph_from_data(data, tensors)
    graph.info = replace(graph.info, file=path.name)
    if "module" in data:
        from elastic_ir.frontends.described import origin_of_file

        with described(graph):
            graph.origin, note = origin_of_file(data, graph, trust)
        graph.info = replace(graph.info, class_note=note)  # with one it is emitted as a GraphModule
    return graph


def read_folder(path: Path, options: ReadOptions, awaited: Awaited | None = None) -> Graph:
    """A model folder, with the masks that lie in it: its network traced, or names and shapes from headers alone.

    ``awaited`` stands for what of it is not there yet.
    """
    from elastic_ir.checkpoints.read import load_checkpoint, masks_beside
    from elastic_ir.formats.model_folder import CheckpointSource, is_compound

    folder = path if awaited is None else awaited.folder
    if awaited is None and (options.component is not None or is_compound(path)):
        from elastic_ir.formats.compound_folder import network_in

        folder = network_in(path, options.component)
    read = load_checkpoint(folder, awaited, options.variant, path)
    graph = read if options.headers_only else traced(_model_of(read, folder), options.input_shape)
    sidecar = masks_beside(folder)
    if sidecar is not None and options.masks_beside and isinstance(read.origin, CheckpointSource):
        attach(graph, _masks_beside(sidecar, read.origin.shards))
    return graph


def _model_of(read: Graph, folder: Path) -> nn.Module:
    """The network of a folder that was read by its headers, in its library's class and with the folder's tensors."""
    from elastic_ir.checkpoints.libraries.find import library_of
    from elastic_ir.formats.model_folder import CheckpointSource
    from elastic_ir.tensors.torch_bridge import to_torch

    origin = read.origin
    assert isinstance(origin, CheckpointSource)
    config, where = origin.config, f"{folder}/{origin.layout.config}"
    state = {name: to_torch(weight.storage.data) for name, weight in read.weights.items()}
    return library_of(config).filled(config, state, where)


# -- masks -------------------------------------------------------------------------------------------------------------


def _mask_mapping(masks: Any) -> Mapping[str, Any]:
    if isinstance(masks, Mapping):
        return masks
    from elastic_ir.frontends.masks import read_masks

    return read_masks(Path(os.fspath(masks)))


def _masks_beside(sidecar: Path, files: Sequence[Path]) -> dict[str, Mask]:
    """The masks beside weights; MaskError where they are of other weights."""
    from elastic_ir.formats.mask_tie import check_tie
    from elastic_ir.formats.safetensors import read_safetensors
    from elastic_ir.frontends.masks import read_masks

    found = read_masks(sidecar)
    check_tie(sidecar, read_safetensors(sidecar)[1], found, files)
    return found


def attach(graph: Graph, masks: Mapping[str, Any]) -> None:
    """Attach masks by weight name, or by what the file calls the weights; MaskError names what does not fit."""
    prefix = graph.info.prefix
    if prefix and all(name.startswith(prefix) for name in masks):
        masks = {name.removeprefix(prefix): mask for name, mask in masks.items()}
    if masks:
        from elastic_ir.frontends.masks import attach_masks

        attach_masks(graph.weights, masks)


def _masks_from_zeros(graph: Graph) -> None:
    from elastic_ir.frontends.masks import masks_from_zeros

    tensors = {n: w.storage.data for n, w in graph.weights.items() if w.prunable and w.mask is None}
    found = masks_from_zeros(tensors)
    if not found:
        raise MaskError(
            f"{graph.name} has no exact zeros in its prunable weights, so --mask-from-zeros finds no mask"
        )
    attach(graph, found)
