"""Models behind URLs: the configuration and what lies beside the weights is fetched, the weights are streamed.

A folder is read as a local one is: of each file of weights the header, or the pickle, by ranges of bytes. What is small
(the configuration, the index, the tokenizer) is fetched into a temporary folder, which goes with the graph; tensors are
asked for by ranges when a result is written, and no file of weights is ever here.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from elastic_ir.checkpoints.side_files import is_taken_along
from elastic_ir.errors import SourceError
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.bin import read_bin
from elastic_ir.formats.hub_cache import files_of_index
from elastic_ir.formats.model_folder import (
    INDEX,
    LAYOUTS,
    MASKS,
    RECORD,
    Layout,
    chosen_layout,
    refused_variant,
)
from elastic_ir.formats.remote import (
    RemoteFile,
    exists,
    file_at,
    files_below,
    path_of,
    without_credentials,
)
from elastic_ir.formats.safetensors import read_safetensors
from elastic_ir.safety.limits import JSON_BYTES
from elastic_ir.tensors.lazy import TensorData

Tell = Callable[[int, int], None]
_AT_ONCE = 8  #: headers that are asked for at once
#: What is asked for by its name where a server lists nothing, beside configuration and weights.
_USUAL = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "preprocessor_config.json", RECORD, MASKS,
)  # fmt: skip


class RemoteFolder:
    """A folder behind a URL, see :class:`elastic_ir.formats.model_folder.Awaited`."""

    def __init__(self, url: str, variant: str | None = None) -> None:
        """Look at what is there and read all headers; SourceError says what is missing or damaged."""
        self.given = url.rstrip("/")
        self.url = without_credentials(self.given)
        home = tempfile.mkdtemp(prefix="elastic-ir-")
        self._end = weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        self.folder = Path(home) / (PurePosixPath(self.url).name or "model")
        self.folder.mkdir()
        self.unfetched = ""
        self.files = files_below(self.given) or self._asked_for()
        found = chosen_layout(self.files, variant)
        if found is None and variant is not None:
            raise refused_variant(self.files, self.url, variant)
        if found is None or found.config not in self.files:
            wanted = " or ".join(f"{one.config} with {one.weights}" for one in LAYOUTS[:2])
            raise SourceError(
                f"{self.url} is no model's folder: it does not have {wanted}, as far as it can be listed"
            )
        if MASKS in self.files:
            raise SourceError(
                f"{self.url} has masks beside its weights, which are compared with them; download it and give the "
                "folder"
            )
        self.layout: Layout = found
        self._fetch([found.config, *(name for name in (RECORD,) if name in self.files)])
        files = found.among(self.files)
        if INDEX.fullmatch(files[0]):
            self._fetch(files)
            files = files_of_index(self.folder / files[0])
        missing = [name for name in files if name not in self.files]
        if missing:
            raise SourceError(f"{self.url} has no file {missing[0]}, which its index names")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self.shards = dict(zip(files, pool.map(self._head, files), strict=True))

    def _head(self, name: str) -> tuple[Mapping[str, TensorData], dict[str, str], RemoteFile]:
        try:
            return read_remote(self.files[name], self.folder / name)
        except SourceError as error:
            raise type(error)(str(error).replace(str(self.folder), self.url)) from error

    def shard(self, name: str) -> tuple[Mapping[str, Any], dict[str, str]] | None:
        if name not in self.shards:
            return None
        tensors, metadata, _ = self.shards[name]
        return tensors, metadata

    def fetch(self, shards: Iterable[str], tell: Tell | None = None) -> None:
        """Nothing is fetched; SourceError where a file is not what its header was read of."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self.shards[name][2].check(), shards))

    def fetch_record(self) -> None:
        """It has come with the configuration."""

    def fetch_side(self, tell: Tell | None = None) -> None:
        self._fetch(name for name in self.files if is_taken_along(name))

    def _asked_for(self) -> dict[str, str]:
        """The files that are there of those that a model has, where the server lists nothing."""
        names = [layout.config for layout in LAYOUTS]
        names += [str(one or other) for layout in LAYOUTS for one, other in layout.forms]
        asked = list(dict.fromkeys((*names, *_USUAL)))
        urls = [f"{self.given}/{name}" for name in asked]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            held = {
                name: url
                for name, url, there in zip(asked, urls, pool.map(exists, urls), strict=True)
                if there
            }
        indices = [name for name in held if INDEX.fullmatch(name)]
        self.files = dict(held)
        self._fetch(indices)
        for index in indices:
            held |= {name: f"{self.given}/{name}" for name in files_of_index(self.folder / index)}
        if held:
            self.unfetched = (
                "the URL's server lists no files: beside the weights only the usual names were asked for"
            )
        return held

    def _fetch(self, names: Iterable[str]) -> None:
        """Have small files here that are not yet."""
        for name in names:
            path = self.folder / name
            if not path.exists():
                file = file_at(self.files[name])
                if path.suffix == ".json" and file.size > JSON_BYTES:
                    raise SourceError(f"{file.plain} has {file.size} bytes, which no such file needs")
                path.parent.mkdir(parents=True, exist_ok=True)
                file.fetch(path)


def read_remote(url: str, path: Path) -> tuple[Mapping[str, TensorData], dict[str, str], RemoteFile]:
    """The tensors and the metadata of a file of weights behind a URL, unread, and the file as it is now.

    ``path`` is what it would be called here. Raises SourceError as :func:`elastic_ir.formats.safetensors.read_head` and
    :func:`elastic_ir.formats.bin.read_bin`.
    """
    file = file_at(url)
    if not SAFETENSORS.names(path):
        return read_bin(path, file), {}, file
    tensors, metadata = read_safetensors(path, distant=file)
    return tensors, metadata, file


# -- files that are read whole -----------------------------------------------------------------------------------------

_here: dict[RemoteFile, Path] = {}  #: what was fetched by this process


def fetched(url: str, tell: Tell | None = None) -> Path:
    """A file behind a URL, in a temporary folder, which goes with the process; fetched once, as it is now.

    ``tell`` is called with bytes done and in all. Raises SourceError, also where the disk is too small.
    """
    file = file_at(url)
    if file not in _here:
        home = Path(tempfile.mkdtemp(prefix="elastic-ir-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        free = shutil.disk_usage(home).free
        if free < file.size:
            raise SourceError(
                f"{without_credentials(url)} has {file.size / 1e9:.2f} GB, and {home.parent} has {free / 1e9:.2f} GB "
                "free; make room, or set TMPDIR to another folder"
            )
        file.fetch(home / path_of(url).name, tell)
        _here[file] = home / path_of(url).name
    return _here[file]
