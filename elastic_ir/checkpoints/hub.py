"""Models of the Hugging Face hub: what is in its cache is used as it is, of the rest what is needed is fetched.

``huggingface_hub`` fetches into its own cache, so that other programs find there what came here, and the other way
round. To look at a model its configuration is enough, and of each file of weights the header, which is read by a range
of bytes; a file is fetched when a tensor in it is needed. What was fetched is compared with the checksum that the hub
states of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from elastic_ir.checkpoints.side_files import is_taken_along
from elastic_ir.errors import ElasticError, SourceError, first_line
from elastic_ir.extras import install, missing
from elastic_ir.formats import GGUF, SAFETENSORS
from elastic_ir.formats.compound_folder import parts_of
from elastic_ir.formats.hub_cache import (
    SCHEME,
    HubName,
    cache_folder,
    commits_of,
    files_of_index,
    is_offline,
    is_whole,
    snapshot_of,
)
from elastic_ir.formats.model_folder import (
    INDEX,
    LAYOUTS,
    Layout,
    chosen_layout,
    layouts_among,
    names_in,
    refused_variant,
)
from elastic_ir.formats.ranges import AwaitedTensor, FileTensor
from elastic_ir.formats.safetensors import read_head, whole_head

Tell = Callable[[int, int], None]
_AT_ONCE = 8  #: headers that are asked for at once
_CONNECT = 10.0  #: seconds to wait for an answer
_LOG_IN = "'hf auth login', or the variable HF_TOKEN"


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
class Snapshot:
    """A model at a commit: its folder in the cache, and what can still be fetched into it."""

    name: HubName
    folder: Path
    layout: Layout
    files: Mapping[str, Listed] | None = None  #: all of them; None where the hub was not asked
    #: by file what the header of one that is not here states
    heads: dict[str, tuple[dict[str, FileTensor], dict[str, str]]] = field(default_factory=dict)
    unfetched: str = ""  #: why files beside the weights may be missing
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def commit(self) -> str:
        return self.folder.name

    def shard(self, name: str) -> tuple[Mapping[str, Any], dict[str, str]] | None:
        """See :class:`elastic_ir.formats.model_folder.Awaited`."""
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
        with self.lock:
            self._fetch(shards, tell)
            for name in set(shards) & self.heads.keys():
                self._check_head(name)

    def fetch_weights(self, tell: Tell | None = None) -> None:
        """Have all weights here: the files that the index names, or the only one."""
        wanted = self.layout.among(self.files or ())
        self._fetch(wanted)
        for index in [name for name in wanted if INDEX.fullmatch(name)]:
            self._fetch(files_of_index(self.folder / index), tell)

    def fetch_side(self, tell: Tell | None = None) -> None:
        """Have all files here that hold no weights, and adapters, as far as the hub can be asked for them."""
        if self.files is None and not is_offline():
            try:
                _, self.files = _listing(replace(self.name, revision=self.commit))
            except SourceError as error:  # the model itself is here
                self.unfetched = f"of the files beside the weights only those in the cache are taken: {error}"
        self._fetch((name for name in self.files or () if is_taken_along(name)), tell)
        parts = tuple(f"{part}/" for part in parts_of(self.folder))  # known now that its statement is here
        if parts:
            self._fetch((name for name in self.files or () if name.startswith(parts)), tell)

    def read_heads(self) -> None:
        """Read the headers of the files of weights that are not here."""
        from concurrent.futures import ThreadPoolExecutor

        wanted = self.layout.among(self.files or ())
        if wanted and INDEX.fullmatch(wanted[0]):
            self._fetch(wanted)
            wanted = files_of_index(self.folder / wanted[0])
        away = [name for name in wanted if not (self.folder / name).exists()]
        ranged = [name for name in away if SAFETENSORS.names(Path(name))]
        self._fetch(
            set(away) - set(ranged)
        )  # the places of torch.save's tensors stand at the end of its files
        self._refuse_unlisted(ranged)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self.heads.update(zip(ranged, pool.map(self._head, ranged), strict=True))

    # -- one file ------------------------------------------------------------------------------------------------

    def _fetch(self, names: Iterable[str], tell: Tell | None = None, revision: str | None = None) -> Path:
        """Fetch what is not here of these files; the folder that they lie in."""
        away = [name for name in names if not (self.folder / name).exists()]
        self._refuse_unlisted(away)
        listed = {name: (self.files or {})[name] for name in away}
        total, done, folder = sum(one.size or 0 for one in listed.values()), 0, self.folder

        def count(size: int) -> None:
            nonlocal done
            done += size
            if tell is not None:
                tell(done, max(done, total))

        for name, one in listed.items():
            with _in_one_line(self.name) as hub:
                path = hub.hf_hub_download(
                    self.name.repo, name, revision=revision or self.commit, cache_dir=cache_folder(),
                    endpoint=_endpoint(), tqdm_class=_meter(count),
                )  # fmt: skip
            one.check(Path(path))
            folder = Path(path).parents[name.count("/")]
        return folder

    def _refuse_unlisted(self, names: Iterable[str]) -> None:
        """SourceError where a file is neither here nor on the hub, or the hub may not be asked."""
        missing = [name for name in names if name not in (self.files or ())]
        if missing and self.files is None:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SourceError(f"{self.name}: {missing[0]}{more} is not in the hub's cache ({self.folder})")
        if missing:
            raise SourceError(f"{self.name} has no file {missing[0]}, which its index names")

    def _head(self, name: str) -> tuple[dict[str, FileTensor], dict[str, str]]:
        """The header of a file of weights that is not here, read by ranges of bytes."""
        size = (self.files or {})[name].size
        whole: int | None = None

        def first(length: int) -> bytes:
            nonlocal whole
            found, whole = self._range(name, length)
            return found

        head = whole_head(first)
        return read_head(head, size or whole or len(head), self.folder / name)

    def _range(self, name: str, length: int) -> tuple[bytes, int | None]:
        """The first bytes of a file, and how many it has in all, if the server says so."""
        with _in_one_line(self.name) as hub:
            url = hub.hf_hub_url(self.name.repo, name, revision=self.commit, endpoint=_endpoint())
            headers = {
                **hub.utils.build_hf_headers(),
                "Range": f"bytes=0-{length - 1}",
                "Accept-Encoding": "identity",
            }
            with hub.get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=_CONNECT
            ) as response:
                hub.utils.hf_raise_for_status(response)
                found = b""
                for piece in response.iter_bytes():
                    found += piece
                    if len(found) >= length:  # a server that knows no ranges sends the whole file
                        break
            stated = response.headers.get("Content-Range", "").rpartition("/")[2]
            return found[:length], int(stated) if stated.isdigit() else None

    def _check_head(self, name: str) -> None:
        """SourceError where a file does not begin with the header that was read of it."""
        from elastic_ir.formats.safetensors import read_safetensors

        def stated(tensors: Mapping[str, FileTensor]) -> dict[str, Any]:
            return {key: (data.offset, data.shape, data.dtype) for key, data in tensors.items()}

        if stated(read_safetensors(self.folder / name)[0]) != stated(self.heads[name][0]):
            raise SourceError(
                f"{self.folder / name} is another file than the hub showed; run the command again"
            )


def snapshot(
    name: HubName, weights: str = "all", tell: Tell | None = None, variant: str | None = None
) -> Snapshot:
    """A model of the hub in the cache; ``weights`` states what is needed of them: "all", "headers" or "none".

    ``variant`` chooses among weights of several, see :func:`elastic_ir.formats.model_folder.chosen_layout`.

    A model whose configuration and weights are in the cache is found there without network. Raises SourceError, one
    line: the library is missing, the model or the revision does not exist, access is refused, the hub cannot be
    reached, the disk is full, what came is damaged.
    """
    folder = snapshot_of(name)
    if folder is not None:
        here = names_in(folder)
        layout = chosen_layout(here, variant)
        if weights == "none":
            layout = next((one for one in LAYOUTS if one.config in here), None)
        if layout is not None and (weights == "none" or is_whole(folder, variant)):
            return Snapshot(name, folder, layout)
    if is_offline():
        raise SourceError(_not_cached(name, folder))
    commit, files = _listing(name)
    layout = chosen_layout(files, variant)
    if layout is None and layouts_among(files):
        raise refused_variant(files, name, variant)
    if layout is None or layout.config not in files:
        raise SourceError(_no_weights(name, files))
    folder = cache_folder() / f"models--{name.repo.replace('/', '--')}" / "snapshots" / commit
    found = Snapshot(name, folder, layout, files)
    # by the revision's name, so that the cache knows later what it stands for; it may have moved since
    if found._fetch([layout.config], revision=name.ref) != folder or snapshot_of(name) is None:
        found._fetch([layout.config])
        _note_revision(name, commit)
    if weights == "headers":
        found.read_heads()
    elif weights == "all":
        found.fetch_weights(tell)
    return found


def _note_revision(name: HubName, commit: str) -> None:
    """Have the cache know what a branch or tag stands for, where the configuration was in it before."""
    if name.ref == commit:
        return
    path = cache_folder() / f"models--{name.repo.replace('/', '--')}" / "refs" / name.ref
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, "utf-8")


def _listing(name: HubName) -> tuple[str, dict[str, Listed]]:
    """The commit that a name stands for, and its files."""
    with _in_one_line(name) as hub:
        api = hub.HfApi(endpoint=_endpoint())
        info = api.model_info(name.repo, revision=name.ref, files_metadata=True, timeout=_CONNECT)
        files = {
            one.rfilename: Listed(
                one.size, one.lfs.sha256 if one.lfs is not None else None, None if one.lfs else one.blob_id
            )
            for one in info.siblings or ()
        }
        if not info.sha or any(part in ("", ".", "..") for file in files for part in file.split("/")):
            raise SourceError(f"{name}: what {_where()} lists is no model's; see HF_ENDPOINT")
        return info.sha, files


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _where() -> str:
    return _endpoint() or "the hub"


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


# -- errors ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _in_one_line(name: HubName) -> Iterator[ModuleType]:
    """The library, quiet; what goes wrong with it becomes a SourceError that says what to do."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise missing("huggingface_hub", _named(name), install("hub"), error) from error
    before = logging.get_verbosity()
    logging.set_verbosity(40)  # of what it tries again
    try:
        yield hub
    except ElasticError:
        raise
    except Exception as error:
        raise SourceError(_said(name, error)) from error
    finally:
        logging.set_verbosity(before)


def _named(name: HubName) -> str:
    """The model in an error: who wrote it without a prefix may have meant a path."""
    return f"{name} does not exist here, and as a model of the hub it" if name.plain else f"{SCHEME}{name}"


def _said(name: HubName, error: BaseException) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    kinds = {type(one).__name__ for one in chain}
    code = next((one.response.status_code for one in chain if isinstance(one, errors.HfHubHTTPError)), None)
    full = [one for one in chain if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)]
    if full:
        return f"{name} could not be fetched: the disk of {cache_folder()} is full; make room, or set HF_HOME"
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain):
        return _not_cached(name, snapshot_of(name))
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return (
            f"{name} is gated: ask for access on its page ({_endpoint() or 'https://huggingface.co'}/{name.repo}), "
            f"then log in ({_LOG_IN})"
        )
    if any(isinstance(one, errors.RevisionNotFoundError) for one in chain):
        return f"{name.repo} has no revision {name.ref!r} on the hub; give a branch, a tag or a whole commit"
    if any(isinstance(one, errors.RemoteEntryNotFoundError) for one in chain):
        return f"{name}: a file that the hub lists is not there; run the command again"
    if code in (401, 404) or any(isinstance(one, errors.RepositoryNotFoundError) for one in chain):
        here = "does not exist here, and " if name.plain else ""
        return f"{name} {here}is no model on the hub, or a private one; see how it is written, or log in ({_LOG_IN})"
    if code == 403:
        return f"{name}: the hub refuses access (403); log in as somebody who may read it ({_LOG_IN})"
    if code is not None:
        return f"{name} could not be fetched: {_where()} answers with the status {code}; try again later"
    if any("Consistency check" in str(one) for one in chain):
        return (
            f"{name} could not be fetched: a file came with another length than stated; run the command again"
        )
    network = next((one for one in chain if _of_network(one)), None)
    if network is not None:
        return (
            f"{_named(name)} could not be fetched: {_where()} cannot be reached, or broke off "
            f"({first_line(network)}); see the connection and run the command again: finished files are kept"
        )
    if "FileMetadataError" in kinds or "JSONDecodeError" in kinds:
        return f"{name} could not be fetched: {_where()} does not answer as a hub does; see HF_ENDPOINT"
    return f"{name} could not be fetched: {type(error).__name__}: {first_line(error)}"


def _of_network(error: BaseException) -> bool:
    """Whether an error is of a connection: one of the client's library, whichever that is, or of the system."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(
        names & {"TransportError", "TimeoutException"}
    )


def _not_cached(name: HubName, folder: Path | None) -> str:
    """Why a model is not found without network."""
    held = commits_of(name)
    if folder is not None:
        what = "not all files of it are in the hub's cache"
    elif held:
        what = f"the hub's cache has other commits of it ({', '.join(held[:3])})"
    else:
        what = f"it is not in the hub's cache ({cache_folder()})"
    here = "does not exist here; as a model of the hub" if name.plain else "cannot be read"
    join = " " if name.plain else ": "
    return (
        f"{name} {here}{join}{what}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or fetch it elsewhere with "
        f"'hf download {name.repo}'"
    )


def _no_weights(name: HubName, files: Mapping[str, Listed]) -> str:
    """Why a repository is no model that can be read."""
    gguf = sorted(file for file in files if GGUF.names(Path(file)))
    if gguf:
        return (
            f"{name} holds GGUF files and no folder of safetensors; fetch one with 'hf download {name.repo} {gguf[0]}' "
            "and give its path"
        )
    if "model_index.json" in files:
        return (
            f"{name} is a pipeline of several networks; fetch it with 'hf download {name.repo}' and give its folder, "
            "with --component NAME"
        )
    if "adapter_config.json" in files:
        return (
            f"{name} is an adapter of PEFT and no model; give the model that it belongs to. Fetched with 'hf download "
            f"{name.repo}', 'elastic-ir follow' carries it over to what was made of that"
        )
    wanted = " or ".join(f"{one.config} with {one.weights}" for one in LAYOUTS[:2])
    return f"{name} has no weights under the names that a library gives them ({wanted}, or as .bin)"
