"""A GGUF file of a repository of the hub, chosen by its name or by its quantisation, and read by its header.

Its parts are fetched into the hub's cache when a tensor in it is needed, whole: other programs find them there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from elastic_ir.checkpoints.gguf.read import load_gguf
from elastic_ir.checkpoints.hub.refusals import not_cached, which_gguf
from elastic_ir.checkpoints.hub.repository import Repository, Tell, listed, note_revision
from elastic_ir.errors import SourceError
from elastic_ir.formats import GGUF
from elastic_ir.formats.gguf.parts import count_in, first_parts, parts_of
from elastic_ir.formats.hub_cache import HubName, is_offline, snapshot_of
from elastic_ir.ir.graph import Graph

#: What stands beside models in their repositories, in their quantisations, and is none: projectors of pictures.
_PROJECTOR = re.compile(r"mmproj", re.IGNORECASE)
#: The statistics of quantising, or a model that was quantised with them.
_STATISTICS = re.compile(r"imatrix", re.IGNORECASE)


@dataclass(frozen=True)
class GgufOfHub:
    """A model's first file in the cache, or where it would be, and its parts."""

    repository: Repository
    file: str
    parts: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.repository.folder / self.file

    @property
    def is_here(self) -> bool:
        """Whether all parts that its name states are in the cache."""
        whole = len(self.parts) == count_in(self.file)
        return whole and all((self.repository.folder / part).exists() for part in self.parts)

    def graph(self) -> Graph:
        """The model by its header; of files that are not here ranges are asked for. SourceError."""
        return load_gguf(self.path, self._elsewhere, fetch=self.fetch)

    def fetch(self, tell: Tell | None = None) -> None:
        """Have all parts here; ``tell`` is called with bytes done and in all."""
        if all((self.repository.folder / part).exists() for part in self.parts):
            return
        self.repository.fetch(self.parts, tell)
        note_revision(self.repository.name, self.repository.commit)

    def _elsewhere(self, path: Path) -> HubFile | None:
        if path.exists():
            return None
        name = path.relative_to(self.repository.folder).as_posix()
        self.repository.refuse_unlisted([name])
        return HubFile(self.repository, name)


@dataclass(frozen=True)
class HubFile:
    """A file of the hub that is not here, see :class:`elastic_ir.formats.distant.DistantFile`."""

    repository: Repository
    name: str

    @property
    def size(self) -> int:
        stated = (self.repository.files or {})[self.name].size
        return stated if stated is not None else self.repository.range(self.name, 0, 1)[1] or 0

    def read(self, offset: int, size: int) -> bytes:
        """A range of bytes; SourceError where it does not come whole."""
        found, _ = self.repository.range(self.name, offset, size)
        if len(found) != size:
            raise SourceError(
                f"{self.repository.name}: {self.name} came with {len(found)} bytes of {size} from byte {offset} on; "
                "run the command again"
            )
        return found

    def check(self) -> None:
        """A commit does not change."""


def gguf_of_hub(name: HubName) -> GgufOfHub:
    """The file that a name means: in the cache if it is there whole, else as the hub lists it. SourceError.

    Whether a quantisation means one file the whole list shows, and not the part of it that is in the cache; only where
    the hub cannot be asked is the cache all that there is.
    """
    folder = snapshot_of(name)
    names = _names_in(folder) if folder is not None else []
    cached = _chosen(Repository(name, folder), names) if folder is not None else None
    if cached is not None and not cached.is_here:
        cached = None
    if cached is not None and (name.inner or is_offline()):
        return cached
    if is_offline():
        several = _meant(name, names)
        if len(several) > 1:
            raise SourceError(_refusal(name, several))
        raise SourceError(not_cached(name, folder))
    try:
        repository = listed(replace(name, revision=cached.repository.commit) if cached is not None else name)
    except SourceError:
        if cached is not None:
            return cached
        raise
    repository.name = name
    files = list(repository.files or ())
    found = _chosen(repository, files)
    if found is None:
        raise SourceError(_refusal(name, files))
    return found


def _refusal(name: HubName, files: Iterable[str]) -> str:
    """Why none of these files is taken."""
    held = [file for file in files if GGUF.names(Path(file))]
    what = f"no file {name.inner}" if name.inner else f"not one GGUF file of the quantisation {name.quant}"
    if not held:
        return f"{name} has {what}, and no GGUF file at all"
    return f"{name} has {what}; {which_gguf(name, first_parts(held))}"


def _names_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _meant(name: HubName, files: Iterable[str]) -> list[str]:
    """Of the names of files those, of parts the first, that a name may mean."""
    held = [file for file in files if GGUF.names(Path(file))]
    if name.inner:
        return [file for file in held if file == name.inner]
    word = re.compile(rf"(?:^|[-._/]){re.escape(name.quant)}(?:$|[-./])", re.IGNORECASE)
    found = [file for file in first_parts(held) if word.search(file.rpartition(".")[0])]
    found = [file for file in found if not _PROJECTOR.search(file)]
    return [file for file in found if not _STATISTICS.search(PurePosixPath(file).name)] or found


def _chosen(repository: Repository, files: Sequence[str]) -> GgufOfHub | None:
    """The model that the repository's name means among files; None where it is none of them, or one of several."""
    found = _meant(repository.name, files)
    return GgufOfHub(repository, found[0], tuple(parts_of(found[0], files))) if len(found) == 1 else None
