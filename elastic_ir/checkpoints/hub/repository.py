"""A repository of the hub at a commit: which files it has, in the hub's cache and beyond, and how they come here."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.hub.refusals import endpoint, in_one_line, where
from elastic_ir.errors import SourceError
from elastic_ir.formats.hub_cache import HubName, cache_folder, repository_folder, snapshot_of

Tell = Callable[[int, int], None]
_CONNECT = 10.0  #: seconds to wait for an answer


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it."""

    size: int | None
    sha256: str | None  #: of a large file
    blob: str | None  #: Git's hash of a small one

    def check(self, path: Path) -> None:
        """SourceError where a file that was fetched is another; it is removed then."""
        if self.size is not None and path.stat().st_size != self.size:
            self._refuse(path, f"has {path.stat().st_size} bytes where the hub lists {self.size}")
        if self.sha256 is None and self.blob is None:
            return
        with path.open("rb") as file:
            digest = hashlib.sha256() if self.sha256 else hashlib.sha1(usedforsecurity=False)
            if not self.sha256:
                digest.update(b"blob %d\0" % path.stat().st_size)
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != (self.sha256 or self.blob):
            self._refuse(path, "is another file than the hub lists, by its checksum")

    @staticmethod
    def _refuse(path: Path, what: str) -> None:
        for each in (path.resolve(), path):
            each.unlink(missing_ok=True)
        raise SourceError(f"{path.name}, as it was fetched, {what}; run the command again")


@dataclass(eq=False)
class Repository:
    """The files at a commit: the folder in the cache, and what can still be fetched into it."""

    name: HubName
    folder: Path
    files: Mapping[str, Listed] | None = None  #: all of them; None where the hub was not asked
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def commit(self) -> str:
        return self.folder.name

    def fetch(self, names: Iterable[str], tell: Tell | None = None, revision: str | None = None) -> Path:
        """Fetch what is not here of these files; the folder that they lie in."""
        with self.lock:
            return self._fetch(names, tell, revision)

    def _fetch(self, names: Iterable[str], tell: Tell | None, revision: str | None) -> Path:
        away = [name for name in names if not (self.folder / name).exists()]
        self.refuse_unlisted(away)
        listed = {name: (self.files or {})[name] for name in away}
        total, done, folder = sum(one.size or 0 for one in listed.values()), 0, self.folder

        def count(size: int) -> None:
            nonlocal done
            done += size
            if tell is not None:
                tell(done, max(done, total))

        for name, one in listed.items():
            with in_one_line(self.name) as hub:
                path = hub.hf_hub_download(
                    self.name.repo, name, revision=revision or self.commit, cache_dir=cache_folder(),
                    endpoint=endpoint(), tqdm_class=_meter(count),
                )  # fmt: skip
            one.check(Path(path))
            folder = Path(path).parents[name.count("/")]
        return folder

    def begin(self, names: Iterable[str]) -> None:
        """Fetch first files by the revision's name, so that the cache knows later what it stands for."""
        wanted = list(names)
        if self.fetch(wanted, revision=self.name.ref) != self.folder or snapshot_of(self.name) is None:
            self.fetch(wanted)  # the revision has moved since, or they were here
            note_revision(self.name, self.commit)

    def refuse_unlisted(self, names: Iterable[str]) -> None:
        """SourceError where a file is neither here nor on the hub, or the hub may not be asked."""
        missing = [name for name in names if name not in (self.files or ())]
        if missing and self.files is None:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SourceError(f"{self.name}: {missing[0]}{more} is not in the hub's cache ({self.folder})")
        if missing:
            raise SourceError(f"{self.name} has no file {missing[0]}, which is needed of it")

    def range(self, name: str, at: int, length: int) -> tuple[bytes, int | None]:
        """So many bytes of a file, as far as it has them, and how many it has in all, if the server says so."""
        with in_one_line(self.name) as hub:
            url = hub.hf_hub_url(self.name.repo, name, revision=self.commit, endpoint=endpoint())
            headers = {
                **hub.utils.build_hf_headers(),
                "Range": f"bytes={at}-{at + length - 1}",
                "Accept-Encoding": "identity",
            }
            with hub.get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=_CONNECT
            ) as response:
                hub.utils.hf_raise_for_status(response)
                if at and response.status_code != 206:
                    raise SourceError(
                        f"{self.name}: {where()} gives no ranges of bytes of {name}; fetch it first"
                    )
                found = b""
                for piece in response.iter_bytes():
                    found += piece
                    if len(found) >= length:  # a server that knows no ranges sends the whole file
                        break
            stated = response.headers.get("Content-Range", "").rpartition("/")[2]
            return found[:length], int(stated) if stated.isdigit() else None


def note_revision(name: HubName, commit: str) -> None:
    """Have the cache know what a branch or tag stands for, where the configuration was in it before."""
    if name.ref == commit:
        return
    path = repository_folder(name.repo) / "refs" / name.ref
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, "utf-8")


def listed(name: HubName) -> Repository:
    """The repository of a name, as the hub lists it now. SourceError says why it cannot be had."""
    with in_one_line(name) as hub:
        api = hub.HfApi(endpoint=endpoint())
        info = api.model_info(name.repo, revision=name.ref, files_metadata=True, timeout=_CONNECT)
        files = {
            one.rfilename: Listed(
                one.size, one.lfs.sha256 if one.lfs is not None else None, None if one.lfs else one.blob_id
            )
            for one in info.siblings or ()
        }
        if not info.sha or any(part in ("", ".", "..") for file in files for part in file.split("/")):
            raise SourceError(f"{name}: what {where()} lists is no model's; see HF_ENDPOINT")
        return Repository(name, repository_folder(name.repo) / "snapshots" / info.sha, files)


def _meter(count: Callable[[int], None]) -> Any:
    """What the library takes for a bar: a class of which each file has one, and that only counts."""

    class Meter:
        def __init__(self, *_given: Any, initial: int = 0, total: int | None = None, **_more: Any) -> None:
            self.n, self.total = initial, total

        def update(self, size: float | None = 1) -> None:
            count(int(size or 0))

        def __enter__(self) -> Meter:
            return self

        def __exit__(self, *_given: object) -> None: ...

        def __getattr__(self, name: str) -> Any:  # what else a bar can be told
            if name.startswith("_"):
                raise AttributeError(name)
            return lambda *_given, **_more: None

    return Meter
