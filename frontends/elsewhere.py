"""Sources that are no paths: models of a hub, and what cannot be a source, told in its own terms."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir import formats
from elastic_ir.errors import ElasticError, SourceError, first_line
from elastic_ir.extras import without_bars
from elastic_ir.formats import ReadOptions, Stored, format_named
from elastic_ir.formats.hub_cache import SCHEME, HubName, hub_name
from elastic_ir.formats.model_folder import INDEX, LAYOUTS
from elastic_ir.formats.remote import is_url
from elastic_ir.frontends.library_names import network_names
from elastic_ir.tensors.lazy import TensorData

if TYPE_CHECKING:
    from elastic_ir.checkpoints.hub import Snapshot
    from elastic_ir.ir.graph import Graph

_URL = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*)://(?P<rest>.*)", re.DOTALL)
_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")
SCHEMES = "hf:ORG/NAME, timm:NAME, torchvision:NAME, or package.module:factory"


def on_hub(text: str) -> HubName | None:
    """The model of the hub that a source names, see :func:`elastic_ir.formats.hub_cache.hub_name`.

    Raises SourceError for a URL of the hub.
    """
    if is_url(text):
        refuse_hub_url(text)
        return None
    return hub_name(text)


def remote_graph(url: str, options: ReadOptions) -> Graph:
    """The network behind a URL: a folder of safetensors, or a ``.safetensors`` file, by headers and ranges of bytes.

    Raises SourceError, in terms of the URL, for what is neither, and what reading the folder or file raises.
    """
    from elastic_ir.checkpoints.remote import RemoteFolder, read_remote
    from elastic_ir.frontends.masks import masks_from_state
    from elastic_ir.frontends.sources import network_of, read_folder

    path = Path(url.partition("?")[0])
    form = formats.format_named(path)
    if options.key is not None:
        raise SourceError(f"{url} holds one network; leave out the key")
    if form is not None and form is not formats.SAFETENSORS:
        raise SourceError(
            f"{url}: of files behind URLs only .safetensors and folders of them are streamed; download it and give "
            f"the {form.suffixes[0]} file"
        )
    if form is not None:
        refuse_part(path)
        tensors, metadata, _ = read_remote(url, Path(path.name))
        named, pruned = masks_from_state(dict[str, TensorData](tensors))
        return network_of(Stored(named, pruned, metadata.get("elastic_ir.graph")), Path(path.name), options)
    found = RemoteFolder(url, options.variant)
    try:
        return read_folder(found.folder, options, found)
    except SourceError as error:
        raise type(error)(str(error).replace(str(found.folder), found.url)) from error


def fetched(name: HubName, headers_only: bool, variant: str | None = None) -> Snapshot:
    """A model of the hub in its cache: all of it, or what shows its tensors without their bytes."""
    from elastic_ir.checkpoints.hub import snapshot

    return snapshot(name, "headers" if headers_only else "all", variant=variant)


def configuration_folder(text: str) -> Path | None:
    """The folder with the configuration of a model of the hub, fetched without weights; None for other sources."""
    name = on_hub(text)
    if name is None:
        return None
    from elastic_ir.checkpoints.hub import snapshot

    return snapshot(name, "none").folder


def refuse_hub_url(text: str) -> None:
    """SourceError for a URL of the hub, which is taken by the model's name."""
    match = _URL.fullmatch(text)
    if match is None:
        return
    host, _, path = match["rest"].partition("/")
    parts = [part for part in path.split("/") if part]
    if match["scheme"] in ("http", "https") and host.lower() in _HUBS and len(parts) >= 2:
        revision = f"@{parts[3]}" if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve") else ""
        name = f"{parts[0]}/{parts[1]}{revision}"
        raise SourceError(f"{text} is a URL; a model of the hub is given by its name: {name}")
    if match["scheme"] == "hf":
        raise SourceError(
            f"{text} is a URL; write {SCHEME}{'/'.join((parts and [host, parts[0]]) or [host])}"
        )


def refuse_part(path: Path) -> None:
    """SourceError for a file that is a part of a model's folder and no model: its configuration, an index, a shard."""
    shard = _SHARD.fullmatch(path.name)
    if path.name in {layout.config for layout in LAYOUTS} or INDEX.fullmatch(path.name):
        what = "a model's configuration" if shard is None and not INDEX.fullmatch(path.name) else "an index"
        raise SourceError(f"{path} is {what}; give its folder, {path.parent}")
    if shard is not None and int(shard["count"]) > 1:
        raise SourceError(
            f"{path} is one of {int(shard['count'])} shards of a model; give its folder, {path.parent}"
        )


def refuse_scheme(text: str) -> None:
    """SourceError for ``NAME:REST`` that can be no factory of a package."""
    head, _, tail = text.partition(":")
    if head in ("timm", "torchvision"):
        return
    if not all(part.isidentifier() for part in head.split(".")) and not head.endswith(".py"):
        raise SourceError(
            f"{text} does not exist, and {head!r} names no package; sources that are no paths: {SCHEMES}"
        )
    if not tail.isidentifier() and importlib.util.find_spec(head.partition(".")[0]) is None:
        raise SourceError(
            f"{text} does not exist, and {head}: is no known scheme; sources that are no paths: {SCHEMES}"
        )


def refuse_missing(text: str) -> None:
    """SourceError for a word that is no path, where it is a name of timm, with a tag or without, or of torchvision."""
    if not re.fullmatch(r"[\w-]+(\.\w+)?", text) or format_named(Path(text)) is not None:
        return
    found = [
        library
        for library, name in (("timm", text.partition(".")[0]), ("torchvision", text))
        if name in network_names(library)
    ]
    if found:
        raise SourceError(
            f"{text} does not exist; it is a network of {' and '.join(found)}: give "
            + " or ".join(f"{library}:{text}" for library in found)
        )


@contextlib.contextmanager
def trained(text: str) -> Iterator[None]:
    """Around a library's own loading of trained weights, without bars: SourceError in place of what it makes fail."""
    try:
        with without_bars():
            yield
    except ElasticError:
        raise
    except Exception as error:  # of the library, its network client, or the file that came
        raise SourceError(
            f"{text}: its trained weights could not be taken ({type(error).__name__}: {first_line(error)}); see the "
            "name and the connection, or leave --pretrained out"
        ) from error
