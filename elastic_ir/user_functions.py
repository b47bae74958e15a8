"""Code of users: functions that they name, ``package.module:function``, and what installed packages offer.

The folder is on the path only while such a function is imported or called, and only because its name was given: a
program that an installed script starts does not have it there, ``python -m`` does. (Flask and uvicorn find an
application so.) Nothing that a file says is looked up here.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from elastic_ir.errors import ElasticError, one_line


@contextmanager
def working_folder_on_path() -> Iterator[None]:
    """The working folder first on the path, as for ``python -m``; off it again at the end."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # a module that was written a moment ago
    try:
        yield
    finally:
        if folder in sys.path:  # the module may have changed the path itself
            sys.path.remove(folder)


def find(name: str) -> Any:
    """What ``package.module:function`` stands for.

    Raises ImportError, also where the module itself fails, AttributeError for a name that it has not, and ValueError
    for one without a module.
    """
    module, _, function = name.partition(":")
    hint = written_as_file(name)
    with working_folder_on_path():
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if hint is None:
                raise
            raise ImportError(f"a module is named without its extension; write {hint}") from error
        except ValueError:
            raise
        except Exception as error:  # a module of the user's may raise anything
            raise ImportError(f"{type(error).__name__}: {one_line(error)}") from error
    return getattr(found, function)


def call(
    function: Any, name: str, raises: type[ElasticError], arguments: Mapping[str, Any] | None = None,
    what: str = "the network's factory",
) -> Any:  # fmt: skip
    """The function's result, with the working folder on the path for what it imports itself.

    Errors of ElasticIR pass; any other becomes one line, an error of the class ``raises``.
    """
    try:
        with working_folder_on_path():
            return function(**(arguments or {}))
    except ElasticError:
        raise
    except Exception as error:  # a user's function may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in (arguments or {}).items())
        how = f"with {given}" if given else "without arguments"
        raise raises(f"{what} {name} fails {how}: {type(error).__name__}: {one_line(error)}") from error


def written_as_file(name: str) -> str | None:
    """``toy:net`` for ``toy.py:net`` and ``nets.toy:net`` for ``nets/toy.py:net``; None for anything else."""
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and module.endswith(".py")):
        return None
    parts = [part for part in module.removesuffix(".py").replace("\\", "/").split("/") if part != "."]
    return f"{'.'.join(parts)}:{function}" if all(part.isidentifier() for part in parts) else None


def offered(group: str, what: str, kind: type[ElasticError]) -> Iterator[tuple[str, Any]]:
    """What installed packages offer in an entry-point group, each after the ``package.module:name`` of its definition.

    ``what`` is the noun for messages. Raises ``kind`` where something cannot be imported.
    """
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    for entry in entry_points(group=group):
        try:
            found = entry.load()
        except Exception as error:  # code of others: whatever it raises, the message names the package
            raise kind(
                f"the {what} {entry.name!r} ({entry.value}) cannot be imported: {error}; repair or uninstall "
                "its package"
            ) from error
        yield entry.value, found
