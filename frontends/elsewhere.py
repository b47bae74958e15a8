"""Sources that are no paths: models of a hub, and what cannot be a source, told in its own terms."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir import formats
from elastic_ir.errors import ElasticError, SourceError, first_line
from elastic_ir.extras import without_bars
from elastic_ir.formats import ReadOptions, format_named
from elastic_ir.formats.hub_cache import SCHEME, HubName, hub_name
from elastic_ir.formats.model_folder import INDEX, LAYOUTS
from elastic_ir.formats.remote import is_url, without_credentials
from elastic_ir.frontends.library_names import network_names

if TYPE_CHECKING:
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
    """The network behind a URL: a folder of safetensors, or a file of any format.

    Formats that are read by their headers are asked for ranges of bytes; other files are fetched once into a temporary
    folder. Raises SourceError, in terms of the URL, for what is neither, and what reading the folder or file raises.
    """
    from elastic_ir.formats.distant import WholeFileNeeded
    from elastic_ir.formats.remote import path_of

    path, plain = path_of(url), without_credentials(url)
    form = form_behind(url)
    if options.key is not None and (form is None or not form.several):
        raise SourceError(f"{plain} holds one network; leave out the key")
    options = replace(options, url=plain)
    if form is None and options.component is not None:
        raise SourceError(
            f"{plain}: a component is chosen in a folder here, or of the hub; download it and give that"
        )
    if form is None:
        return _remote_folder(url, options)
    if options.variant is not None or options.component is not None:
        raise SourceError(f"{plain} is a file; a variant or a component is chosen in a folder")
    folder = plain.rpartition("/")[0]
    with contextlib.suppress(WholeFileNeeded), _in_terms_of(folder, path.parent):
        refuse_part(path)
        if form.ranged:
            return _read_as(form, path, url, options)
    here = fetched_file(url)
    with _in_terms_of(folder, here.parent):
        return _read_as(form, here.resolve(), url, options)


def form_behind(url: str) -> formats.Format | None:
    """The format of a file behind a URL, by the name; None for what is a folder, if anything."""
    from elastic_ir.formats.remote import path_of

    path = path_of(url)
    return formats.format_named(path) or (formats.PYTORCH if path.suffix in (".ckpt", ".bin") else None)


def fetched_file(url: str, tell: Callable[[int, int], None] | None = None) -> Path:
    """A file behind a URL, fetched; see :func:`elastic_ir.checkpoints.remote.fetched`."""
    from elastic_ir.checkpoints.remote import fetched

    return fetched(url, tell)


def needed_whole(url: str) -> bool:
    """Whether a file behind a URL is fetched to be read, as far as its beginning and its end show it. SourceError."""
    from elastic_ir.formats.distant import DistantReader
    from elastic_ir.formats.remote import file_at
    from elastic_ir.formats.torch_zip import archive_of

    form = form_behind(url)
    if form is not formats.PYTORCH:
        return form is not None and not form.ranged
    with contextlib.suppress(SourceError):  # whoever reads it says what is wrong
        archive = archive_of(DistantReader(file_at(url)), "")
        return archive is not None and archive.names_classes
    return False


def _refuse_masks(url: str, path: Path) -> None:
    """SourceError where a URL has a file of masks beside the weights, or may have one; a signed one is taken alone."""
    from elastic_ir.formats.remote import exists, has_query, url_beside

    masks = f"{path.stem}.masks.safetensors"
    try:
        masked = exists(url_beside(url, masks))
    except SourceError as error:
        if has_query(url):  # a signature is of one file
            return
        raise SourceError(
            f"whether {without_credentials(url)} has masks beside it is not known ({error}); download it, and "
            "the masks if there are any, and give the file"
        ) from error
    if masked:
        raise SourceError(
            f"{without_credentials(url)} has masks beside it ({masks}), which are compared with the weights; download "
            "both and give the file"
        )


def _read_as(form: formats.Format, path: Path, url: str, options: ReadOptions) -> Graph:
    """Read a file, here or elsewhere, of which and beside which the URL has what is not here."""
    from elastic_ir.formats.remote import lying_beside
    from elastic_ir.frontends.sources import read_as

    if form is formats.SAFETENSORS and options.masks_beside:
        _refuse_masks(url, path)
    graph = read_as(form, path, replace(options, elsewhere=lying_beside(url, path.parent)))
    graph.info = replace(graph.info, file=options.url)  # what a record calls it
    return graph


@contextlib.contextmanager
def _in_terms_of(url: str, path: Path) -> Iterator[None]:
    """Errors name the URL, not the path that stands for it."""
    try:
        yield
    except ElasticError as error:
        raise type(error)(str(error).replace(str(path), url)) from error


def _remote_folder(url: str, options: ReadOptions) -> Graph:
    from elastic_ir.checkpoints.remote import RemoteFolder
    from elastic_ir.frontends.sources import read_folder

    found = RemoteFolder(url, options.variant)
    with _in_terms_of(found.url, found.folder):
        return read_folder(found.folder, options, found)


def hub_graph(name: HubName, options: ReadOptions) -> Graph:
    """A model of the hub: all of it in the cache, or what shows its tensors without their bytes."""
    from elastic_ir.frontends.sources import read_folder

    if name.is_gguf:
        from elastic_ir.checkpoints.hub.gguf import gguf_of_hub

        return gguf_of_hub(name).graph()
    from elastic_ir.checkpoints.hub.model import snapshot

    needed = "headers" if options.headers_only else "all"
    found = snapshot(name, needed, variant=options.variant, component=options.component)
    return read_folder(found.whole, options, found)


def configuration_folder(text: str) -> Path | None:
    """The folder with the configuration of a model of the hub, fetched without weights; None for other sources."""
    name = on_hub(text)
    if name is None or name.is_gguf:
        return None
    from elastic_ir.checkpoints.hub.model import snapshot

    return snapshot(name, "none").folder


def refuse_hub_url(text: str) -> None:
    """SourceError for a URL of the hub, which is taken by the model's name."""
    match = _URL.fullmatch(text)
    if match is None:
        return
    host, _, path = without_credentials(text).partition("://")[2].partition("/")
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
