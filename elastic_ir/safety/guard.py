"""A guard around a library's code that is given values from a file: it opens no files, runs nothing, reaches no host.

Python announces such acts by audit events (PEP 578), before they happen and whoever asks for them; a hook that raises
stops them. Hooks stay for good, so there is one, and it does nothing outside of :func:`guarded`. What imports need
stays possible: libraries import their parts when those are first used. No torch here.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.errors import BlockedError

#: Events of acts that no constructor of a network needs, each with all that begin so: files changed, programs run,
#: hosts reached, pickles read.
_ACTS = (
    "ftplib.", "http.client.", "imaplib.", "mmap.", "nntplib.", "os.chmod", "os.chown", "os.exec", "os.fork", "os.link",
    "os.lockf", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.startfile",
    "os.symlink", "os.system", "os.truncate", "os.utime", "pickle.", "poplib.", "pty.", "shutil.", "smtplib.",
    "socket.", "sqlite3.", "subprocess.", "syslog.", "telnetlib.", "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip
#: Reaches nothing by itself. A library that is imported in here may make one to see whether there is IPv6.
_HARMLESS = {"socket.__new__", "socket.gethostname"}
#: What is imported, by the ends of its files; anywhere on the path for modules.
_CODE = (".py", ".pyc", ".so", ".pyd", ".dylib")
#: What installed packages read of their own: lists of names, templates, their versions. No weights, no pickles.
_TEXTS = (".txt", ".json", ".csv", ".typed", ".yaml", ".yml", ".toml")
_METADATA = (".dist-info", ".egg-info")
#: Whose own compiling and running of code is no more than Python's definitions: classes, annotations, modules.
_DEFINING = {
    "ast", "collections", "dataclasses", "inspect", "typing", "typing_extensions",
    "importlib._bootstrap", "importlib._bootstrap_external",
}  # fmt: skip


@dataclass
class Guard:
    """One guard that is up: for the thread that raised it, and for those that are started meanwhile."""

    what: str
    others: frozenset[threading.Thread]  #: threads that ran before it, which go on as they were
    blocked: list[str] = field(default_factory=list)  #: what was stopped, in words


_up: list[Guard] = []
_lock = threading.Lock()
_hooked = False


@contextmanager
def guarded(what: str) -> Iterator[Guard]:
    """Stop, within the block, what code of a library should not do with values from a file.

    Opening files (but what imports need), changing them, unpickling, running programs or source code, and reaching
    hosts raise BlockedError, which names ``what`` and the act. A library that catches it goes on without; the guard
    that is handed out lists what was stopped. Other threads that run already are left alone.
    """
    global _hooked
    with _lock:
        if not _hooked:
            _import_roots()
            sys.addaudithook(_audit)
            _hooked = True
    guard = Guard(what, frozenset(threading.enumerate()) - {threading.current_thread()})
    _up.append(guard)
    try:
        yield guard
    finally:
        _up.remove(guard)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _up:
        return
    thread = threading.current_thread()
    guard = next((guard for guard in reversed(_up) if thread not in guard.others), None)
    if guard is None:
        return
    act = _refusal(event, arguments)
    if act is not None:
        guard.blocked.append(act)
        raise BlockedError(f"{guard.what} would {act}, which nothing that comes from a file may do")


def _refusal(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The act that an event announces, in words; None where it is allowed."""
    if event == "open":
        path, mode, flags = (*arguments, None, None, None)[:3]
        if isinstance(path, int) or (_reads(mode, flags) and _importable(path)):
            return None
        return f"open {_text(path)}"
    if event == "ctypes.dlopen":
        return None if not arguments[0] or _importable(arguments[0]) else f"load {_text(arguments[0])}"
    if event in ("exec", "compile"):
        return None if _defines() else "run source code"
    if event.startswith(_ACTS) and event not in _HARMLESS:
        return f"do {event} of {', '.join(map(_text, arguments[:2]))}"
    return None


def _text(item: Any) -> str:
    return repr(os.fsdecode(item) if isinstance(item, os.PathLike | bytes) else item)[:100]


def _reads(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return not set(mode) & set("wax+")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return not (isinstance(flags, int) and flags & writing)


# -- what imports need -------------------------------------------------------------------------------------------------

_real: dict[str, str] = {}  #: folders of the path, resolved; links count as what they lead to


def _import_roots() -> tuple[set[str], set[str]]:
    """The folders that modules come from, and those of them that hold installed packages."""
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed.update(site.getsitepackages())
    installed.add(site.getusersitepackages())
    for folder in (*installed, *sys.path):
        if folder not in _real:
            _real[folder] = os.path.realpath(folder or os.curdir)
    return {_real[folder] for folder in (*installed, *sys.path)}, {_real[folder] for folder in installed}


def _importable(path: Any) -> bool:
    """Whether a file is one that an import reads: a module on the path, or a text of an installed package."""
    try:
        real = os.path.realpath(os.fsdecode(path))
    except (TypeError, ValueError):
        return False
    if os.path.exists(real) and not os.path.isfile(real):  # one that is not there is missed in any case
        return False
    roots, installed = _import_roots()
    if real.endswith(_CODE):
        return _below(real, roots)
    texts = real.endswith(_TEXTS) or os.path.dirname(real).endswith(_METADATA)
    return texts and _below(real, installed)


def _below(path: str, folders: set[str]) -> bool:
    return any(path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _defines() -> bool:
    """Whether code is run by an import, or by what Python's own definitions are made with."""
    frame = sys._getframe(3)  # who called exec, eval or compile; the hook and its helpers lie above
    name = frame.f_globals.get("__name__")
    if name in _DEFINING:
        return True
    outer = frame.f_back
    while outer is not None:
        if outer.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        outer = outer.f_back
    return False
