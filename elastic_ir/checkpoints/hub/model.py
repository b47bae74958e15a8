"""A model of the hub in the form of a folder: its configuration, the headers of its weights, and what lies beside them.

A pipeline of several networks is one of them for whoever changes it, and whole for whoever writes the result: then what
its other networks need is fetched as well, and nothing of what a library would not load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.hub.refusals import no_weights, not_cached
from elastic_ir.checkpoints.hub.repository import Repository, Tell, listed
from elastic_ir.checkpoints.side_files import is_side_file, is_taken_along
from elastic_ir.errors import SourceError
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.compound_folder import STATEMENTS, named_parts, names_class, network_in
from elastic_ir.formats.hub_cache import HubName, files_of_index, is_offline, is_whole, snapshot_of
from elastic_ir.formats.model_folder import (
    INDEX,
    LAYOUTS,
    RECORD,
    Layout,
    chosen_layout,
    is_compound,
    layouts_among,
    names_in,
    refused_variant,
)
from elastic_ir.formats.ranges import AwaitedTensor, FileTensor
from elastic_ir.formats.safetensors import read_head, whole_head

_AT_ONCE = 8  #: headers that are asked for at once


@dataclass(eq=False)
class Snapshot:
    """A model at a commit, or one network of it, see :class:`elastic_ir.formats.model_folder.Awaited`."""

    repository: Repository
    layout: Layout
    inner: str = ""  #: the folder of the network that is meant in the repository, with a slash; or nothing
    #: by file what the header of one that is not here states
    heads: dict[str, tuple[dict[str, FileTensor], dict[str, str]]] = field(default_factory=dict)
    unfetched: str = ""  #: why files beside the weights may be missing
    url: str = ""

    @property
    def folder(self) -> Path:
        """The network's folder in the cache."""
        return self.whole / self.inner if self.inner else self.whole

    @property
    def whole(self) -> Path:
        """The repository's folder in the cache."""
        return self.repository.folder

    def shard(self, name: str) -> tuple[Mapping[str, Any], dict[str, str]] | None:
        if name not in self.heads:
            return None
        tensors, metadata = self.heads[name]
        return {
            key: AwaitedTensor(
                data.path, data.offset, data.shape, data.dtype, fetch=lambda: self.fetch([name])
            )
            for key, data in tensors.items()
        }, metadata

    def fetch(self, shards: Iterable[str], tell: Tell | None = None) -> None:
        """Have these files here, and compare each with the header that was read of it."""
        wanted = set(shards)
        with self.repository.lock:
            self._fetch(sorted(wanted), tell)
            for name in wanted & self.heads.keys():
                self._check_head(name)

    def fetch_weights(self, tell: Tell | None = None) -> None:
        """Have all weights here: the files that the index names, or the only one."""
        self.repository.fetch(self._weights(self.inner, self.layout), tell)

    def fetch_record(self) -> None:
        name = self.inner + RECORD
        if not (self.whole / name).exists():
            self._list()
            if self.repository.files is None:
                raise SourceError(
                    f"{self.repository.name}: {name} is not in the hub's cache, and the hub cannot be asked whether "
                    "there is one"
                )
            self.repository.fetch([name] if name in self.repository.files else [])

    def fetch_side(self, tell: Tell | None = None) -> None:
        """Have all here that goes with a result, as far as the hub can be asked for it."""
        self._list()
        files = self.repository.files or ()
        self.repository.fetch(filter(is_taken_along, files), tell)
        parts = named_parts(self.whole)  # known now that the statements are here
        lacking = [part for part in parts if not files and not (self.whole / part).is_dir()]
        if lacking:
            raise SourceError(
                f"{self.repository.name}: {lacking[0]}, which is a part of it, is not in the hub's cache, and the hub "
                "cannot be asked"
            )
        for part in parts:
            if files and f"{part}/" != self.inner:
                self.repository.fetch(self._needed_of(f"{part}/"), tell)

    def read_heads(self) -> None:
        """Read the headers of the files of weights that are not here."""
        wanted = [name.removeprefix(self.inner) for name in self._weights(self.inner, self.layout)]
        away = [name for name in wanted if not INDEX.fullmatch(name) and not (self.folder / name).exists()]
        ranged = [name for name in away if SAFETENSORS.names(Path(name))]
        # the places of torch.save's tensors stand at the end of its files
        self._fetch(name for name in away if name not in ranged)
        self.repository.refuse_unlisted(self.inner + name for name in ranged)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self.heads.update(zip(ranged, pool.map(self._head, ranged), strict=True))

    # -- one file ------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        """See which files there are, if the hub can be asked."""
        if self.repository.files is None and not is_offline():
            try:
                self.repository.files = listed(self._at_commit).files
            except SourceError as error:  # the model itself is here
                self.unfetched = f"of the files beside the weights only those in the cache are taken: {error}"

    @property
    def _at_commit(self) -> HubName:
        return replace(self.repository.name, revision=self.repository.commit)

    def _fetch(self, names: Iterable[str], tell: Tell | None = None) -> None:
        self.repository.fetch([self.inner + name for name in names], tell)

    def _weights(self, inner: str, layout: Layout) -> list[str]:
        """The files of a folder's weights, by their names in the repository; an index is fetched to see them."""
        wanted = layout.among(_within(self.repository.files or (), inner) or names_in(self.whole / inner))
        indices = [name for name in wanted if INDEX.fullmatch(name)]
        self.repository.fetch(inner + name for name in indices)
        shards = [file for name in indices for file in files_of_index(self.whole / inner / name)]
        return [inner + name for name in (*wanted, *shards)]

    def _needed_of(self, part: str) -> list[str]:
        """The files of another part that its library loads: weights of this one's variant, or else of the plain one."""
        files = [name for name in self.repository.files or () if name.startswith(part)]
        names = _within(files, part)
        layout = chosen_layout(names, self.layout.variant or None) or chosen_layout(names)
        if (
            layout is None
        ):  # variants alone, of which nothing shows the one that is meant, or modules of other names
            return files
        return [*self._weights(part, layout), *filter(is_side_file, files)]

    def _head(self, name: str) -> tuple[dict[str, FileTensor], dict[str, str]]:
        """The header of a file of weights that is not here, read by ranges of bytes."""
        inside = self.inner + name
        size = (self.repository.files or {})[inside].size
        whole: int | None = None

        def first(length: int) -> bytes:
            nonlocal whole
            found, whole = self.repository.range(inside, 0, length)
            return found

        head = whole_head(first)
        return read_head(head, size or whole or len(head), self.folder / name)

    def _check_head(self, name: str) -> None:
        """SourceError where a file does not begin with the header that was read of it."""
        from elastic_ir.formats.safetensors import read_safetensors

        def stated(tensors: Mapping[str, FileTensor]) -> dict[str, Any]:
            return {key: (data.offset, data.shape, data.dtype) for key, data in tensors.items()}

        if stated(read_safetensors(self.folder / name)[0]) != stated(self.heads[name][0]):
            raise SourceError(
                f"{self.folder / name} is another file than the hub showed; run the command again"
            )


def _within(names: Iterable[str], inner: str) -> list[str]:
    """The names of the files right in a folder of a repository."""
    inside = (name.removeprefix(inner) for name in names if name.startswith(inner))
    return [name for name in inside if "/" not in name]


def snapshot(
    name: HubName,
    weights: str = "all",
    tell: Tell | None = None,
    variant: str | None = None,
    component: str | None = None,
) -> Snapshot:
    """A model of the hub in the cache; ``weights`` states what is needed of them: "all", "headers" or "none".

    ``variant`` chooses among weights of several, see :func:`elastic_ir.formats.model_folder.chosen_layout`, and
    ``component`` among networks of several, see :func:`elastic_ir.formats.compound_folder.network_in`.

    A model whose configuration and weights are in the cache is found there without network. Raises SourceError, one
    line: the library is missing, the model or the revision does not exist, access is refused, the hub cannot be
    reached, the disk is full, what came is damaged.
    """
    folder = snapshot_of(name)
    found = _cached(name, folder, weights, variant, component) if folder is not None else None
    if found is not None:
        return found
    if is_offline():
        raise SourceError(not_cached(name, folder))
    repository = listed(name)
    inner = _network(repository, component)
    files = _within(repository.files or (), inner)
    layout = chosen_layout(files, variant)
    if layout is None and layouts_among(files):
        raise refused_variant(files, name, variant)
    if layout is None or layout.config not in files:
        raise SourceError(no_weights(name, repository.files or ()))
    repository.begin([inner + layout.config])
    found = Snapshot(repository, layout, inner)
    if weights == "headers":
        found.read_heads()
    elif weights == "all":
        found.fetch_weights(tell)
    return found


def _cached(
    name: HubName, folder: Path, weights: str, variant: str | None, component: str | None
) -> Snapshot | None:
    """The model as the cache has it, if what is needed of it is there."""
    here = names_in(folder)
    repository = Repository(name, folder)
    if weights == "none":
        config = next((one for one in LAYOUTS if one.config in here), None)
        return Snapshot(repository, config) if config is not None else None
    inner = ""
    if component is not None or (is_compound(folder) and not layouts_among(here)):
        if component is None and not is_offline():
            return None  # the cache may lack those that could be meant as well
        try:
            network = network_in(folder, component)
        except SourceError:  # the cache may have some of its networks
            if is_offline():
                raise
            return None
        inner = f"{network.relative_to(folder).as_posix()}/" if network != folder else ""
    layout = chosen_layout(names_in(folder / inner), variant)
    return Snapshot(repository, layout, inner) if layout and is_whole(folder / inner, variant) else None


def _network(repository: Repository, component: str | None) -> str:
    """The folder of the network that is meant, with a slash; nothing for the repository's own. SourceError."""
    files, name = repository.files or {}, repository.name
    statements = [file for file in STATEMENTS if file in files]
    if component is None and (layouts_among(_within(files, "")) or not statements):
        return ""
    repository.begin(statements)
    parts = named_parts(repository.folder)
    if (
        component is not None
        and component.strip("/") in parts
        and _is_network(repository, component.strip("/"))
    ):
        return f"{component.strip('/')}/"
    networks = [part for part in parts if _is_network(repository, part)]
    if component is not None:
        has = f"its networks are {', '.join(networks)}" if networks else "it has none; leave out --component"
        raise SourceError(f"{name} has no component {component!r}; {has}")
    if len(networks) > 1:
        raise SourceError(
            f"{name} holds several networks; state which is meant, by --component {networks[0]} (component=): "
            + ", ".join(networks)
        )
    return f"{networks[0]}/" if networks else ""


def _is_network(repository: Repository, part: str) -> bool:
    """Whether a part has weights and a configuration that names a class, which is fetched to see that."""
    names = _within(repository.files or (), f"{part}/")
    layout = next((one for one in layouts_among(names) if one.config in names), None)
    if layout is None:
        return False
    repository.fetch([f"{part}/{layout.config}"])
    return names_class(repository.folder / part / layout.config)
