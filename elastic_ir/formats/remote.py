"""Files behind URLs (``s3://``, ``gs://``, ``https://``, ``memory://``) by fsspec: what is there, and ranges of bytes.

No file is read whole but small ones. A server that knows no ranges is refused, since it would send everything. A range
that breaks off is asked for again. No torch here.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from elastic_ir.errors import ElasticError, SourceChangedError, SourceError, first_line
from elastic_ir.extras import install, missing

_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z\d+.-]*)://.+", re.DOTALL)
_OVER_HTTP = re.compile(r"(?:^|::)https?://", re.IGNORECASE)
_GONE = (404, 410)
_T = TypeVar("_T")
_TRIES = 3
_PAUSE = 0.2  #: seconds before the second try; twice as long before the third


class MissingFileError(SourceError):
    """There is no such file, as whoever was asked says; of what cannot be asked for nothing is known."""


def is_url(text: str) -> bool:
    """Whether a text is a URL, ``SCHEME://...``."""
    return _URL.fullmatch(text) is not None


def names_place(url: str) -> bool:
    """Whether anything stands behind a URL's scheme."""
    return bool(without_credentials(url).partition("://")[2].strip("/"))


@dataclass(frozen=True)
class RemoteFile:
    """A file as it was when it was looked at: :meth:`read` gives ranges of it, :meth:`check` whether it still is so."""

    url: str
    size: int
    tag: str  #: what changes with the content: an ETag, a checksum or a time; empty where the server states none

    @property
    def plain(self) -> str:
        """The URL as it may be shown."""
        return without_credentials(self.url)

    def read(self, offset: int, size: int) -> bytes:
        """A range of bytes; SourceError where it cannot be had, or is not as long as was asked for."""
        found = _tried(lambda: self._asked(offset, size))
        if len(found) != size:
            raise SourceChangedError(
                f"{self.plain} gave {len(found)} bytes where {size} from byte {offset} on were asked for; it was "
                "changed, or its server is at fault: download it"
            )
        return found

    def fetch(self, path: Path, tell: Callable[[int, int], None] | None = None) -> None:
        """Have all of it in a file here, as a stream; SourceError where it does not come whole, or was changed."""
        _tried(lambda: self._come(path, tell))
        came = path.stat().st_size
        if came != self.size:
            raise SourceChangedError(
                f"{self.plain} came with {came} bytes where its server states {self.size}; it was changed, or its "
                "server is at fault"
            )
        self.check()

    def _come(self, path: Path, tell: Callable[[int, int], None] | None) -> None:
        with in_one_line(self.url):
            system, place = system_of(self.url)
            from fsspec.callbacks import Callback

            size = self.size

            class Told(Callback):  # type: ignore[misc]  # fsspec has no types
                def call(self, *_given: object, **_more: object) -> None:
                    if tell is not None:
                        tell(min(self.value, size), size)

            system.get_file(place, str(path), callback=Told())

    def _asked(self, offset: int, size: int) -> bytes:
        with in_one_line(self.url):
            system, path = system_of(self.url)
            found: bytes
            if not _of_http(self.url):
                found = system.cat_file(path, start=offset, end=offset + size)
                return found
            # a server that knows no ranges sends everything, of which cat_file would take all
            with system.open(path, "rb", cache_type="none", size=self.size) as file:
                file.seek(offset)
                found = file.read(size)
                return found

    def check(self) -> None:
        """SourceError where the file is another by now."""
        if file_at(self.url) != self:
            raise SourceChangedError(f"{self.plain} was changed after it was read; read it again")


def _tried(ask: Callable[[], _T]) -> _T:
    """What ``ask`` gives, asked again where it fails by what may pass."""
    for attempt in range(_TRIES):
        try:
            return ask()
        except SourceError as error:
            lasting = isinstance(error.__cause__, (ImportError, PermissionError, ValueError))
            if attempt == _TRIES - 1 or lasting or isinstance(error, MissingFileError):
                raise
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def without_credentials(url: str) -> str:
    """A URL that may be shown and written down: no user, no password, no query, as signed ones have."""
    scheme, _, rest = url.partition("://")
    ends = r"[?#]" if _of_http(url) else r"\?"  # elsewhere a # is a part of a name
    place, slash, path = re.split(ends, rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def path_of(url: str) -> Path:
    """A URL as a path at which nothing lies, with the name that its file would have here."""
    return Path(without_credentials(url))


def has_query(url: str) -> bool:
    """Whether a URL has a query, as signed ones have."""
    return _of_http(url) and "?" in url.partition("#")[0]


def url_beside(url: str, name: str) -> str:
    """The URL of another file of the same folder."""
    whole, mark, query = url.partition("?") if _of_http(url) else (url, "", "")
    return f"{whole.rpartition('/')[0]}/{name}{mark}{query}"


def lying_beside(url: str, home: Path) -> Callable[[Path], RemoteFile | None]:
    """What gives the file that a path in ``home`` stands for: the URL's own, or one of its folder.

    None for a path at which a file lies. Raises SourceError where the URL's folder has no such file.
    """
    name = path_of(url).name
    known: dict[Path, RemoteFile | None] = {}

    def found(path: Path) -> RemoteFile | None:
        if path not in known:
            inner = path.relative_to(home).as_posix()
            known[path] = None if path.exists() else file_at(url if inner == name else url_beside(url, inner))
        return known[path]

    return found


def system_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; errors are those of :func:`in_one_line`."""
    with in_one_line(url):
        import fsspec

        system: Any = fsspec.core.url_to_fs(url)[0]
        return system, str(system._strip_protocol(url))


def same_place(one: str, other: str) -> bool:
    """Whether two URLs are of one file or folder, as far as that shows."""
    if without_credentials(one).rstrip("/") == without_credentials(other).rstrip("/"):
        return True
    try:
        (mine, path), (theirs, other_path) = system_of(one), system_of(other)
    except SourceError:  # whoever uses it says what is wrong
        return False
    return bool(mine == theirs) and path.rstrip("/") == other_path.rstrip("/")


def _of_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def file_at(url: str) -> RemoteFile:
    """What is at a URL; SourceError where it is no file, of unknown size or cannot be asked for, MissingFileError
    where it is missing.
    """
    info = _tried(lambda: _info(url))
    if info.get("type") == "directory":
        raise SourceError(f"{without_credentials(url)} is a folder and no file")
    if not isinstance(info.get("size"), int):
        raise SourceError(
            f"{without_credentials(url)}: its server does not state its size; download it and give the file"
        )
    tags = (
        info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created", "updated")
    )
    return RemoteFile(url, info["size"], str(next((tag for tag in tags if tag), "")))


def _info(url: str) -> dict[str, Any]:
    system, path = system_of(url)
    with in_one_line(url):
        system.invalidate_cache()
        info: dict[str, Any] = system.info(path)
        return info


def is_filled(url: str) -> bool:
    """Whether there is any file in a folder; SourceError where that is not known."""
    system, root = system_of(url)
    try:
        with in_one_line(url):
            system.invalidate_cache()
            listed = system.ls(root, detail=True)  # of a folder that cannot be listed, find shows no file
            own = root.strip("/")
            listed = [one for one in listed if one["name"].strip("/") != own or one["size"]]
            if all(one["type"] == "directory" for one in listed):
                return bool(listed and system.find(root))
            return True
    except MissingFileError:
        return False


def files_below(url: str) -> dict[str, str] | None:
    """The files of a folder: of each its name within it, and its URL; None where the server lists nothing."""
    system, root = system_of(url)
    try:
        with in_one_line(url):
            found = system.find(root, maxdepth=3)
    except SourceError:
        found = []
    names = dict.fromkeys(str(path)[len(root) :].strip("/") for path in found if str(path).startswith(root))
    kept = {name: f"{url.rstrip('/')}/{name}" for name in names if _is_safe(name)}
    return kept or None


def _is_safe(name: str) -> bool:
    """Whether a name can be that of a file in a folder here."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not re.search(r"[\\?#\0:]", name)


def exists(url: str) -> bool:
    """Whether there is a file at a URL; SourceError where that is not known."""
    try:
        file_at(url)
    except MissingFileError:
        return False
    return True


@contextlib.contextmanager
def in_one_line(url: str) -> Iterator[None]:
    """What goes wrong with a URL becomes a SourceError that says what to do."""
    given, url = url, without_credentials(url)

    def said(error: BaseException) -> str:
        return first_line(error).replace(given, url)

    try:
        yield
    except ElasticError:
        raise
    except ImportError as error:
        if error.name == "fsspec":
            raise missing("fsspec", url, install("remote"), error) from error
        raise SourceError(
            f"{url} needs another package ({first_line(error)}); install that, or download the file"
        ) from error
    except FileNotFoundError as error:
        cause = error.__cause__
        # over HTTP, whatever fails is raised as if nothing were there
        if cause is None or getattr(cause, "status", 0) in _GONE or not _OVER_HTTP.search(given):
            raise MissingFileError(f"{url} does not exist") from error
        raise SourceError(
            f"{url} cannot be read: {type(cause).__name__}: {said(cause)}; see the address and the connection"
        ) from error
    except PermissionError as error:
        raise SourceError(f"{url}: access is refused ({said(error)}); see your credentials") from error
    except ValueError as error:
        if "range requests" in str(error):
            raise SourceError(
                f"{url}: its server gives no ranges of bytes, so all of it would come; download it and give "
                "the file"
            ) from error
        if "Protocol not known" not in str(error):
            raise SourceError(f"{url} cannot be read: {said(error)}") from error
        raise SourceError(f"{url}: fsspec knows no such scheme ({said(error)})") from error
    except Exception as error:  # of the file system's own client
        raise SourceError(
            f"{url} cannot be read: {type(error).__name__}: {said(error)}; see the address and the connection"
        ) from error
