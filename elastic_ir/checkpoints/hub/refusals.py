"""What goes wrong with a model of the hub, in one line that says what to do; the library is imported here alone."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from elastic_ir.errors import ElasticError, SourceError, first_line
from elastic_ir.extras import install, missing
from elastic_ir.formats import GGUF
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, no_model
from elastic_ir.formats.hub_cache import SCHEME, HubName, cache_folder, commits_of, snapshot_of
from elastic_ir.formats.model_folder import LAYOUTS

_LOG_IN = "'hf auth login', or the variable HF_TOKEN"
_SHOWN = 12  #: files of a repository that are listed


def endpoint() -> str | None:
    """The address of the hub, where it is not the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


def where() -> str:
    """What the hub is called in an error."""
    return endpoint() or "the hub"


@contextlib.contextmanager
def in_one_line(name: HubName) -> Iterator[ModuleType]:
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
        return not_cached(name, snapshot_of(name))
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return (
            f"{name} is gated: ask for access on its page ({endpoint() or 'https://huggingface.co'}/{name.repo}), "
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
        return f"{name} could not be fetched: {where()} answers with the status {code}; try again later"
    if any("Consistency check" in str(one) for one in chain):
        return (
            f"{name} could not be fetched: a file came with another length than stated; run the command again"
        )
    network = next((one for one in chain if _of_network(one)), None)
    if network is not None:
        return (
            f"{_named(name)} could not be fetched: {where()} cannot be reached, or broke off "
            f"({first_line(network)}); see the connection and run the command again: finished files are kept"
        )
    if "FileMetadataError" in kinds or "JSONDecodeError" in kinds:
        return f"{name} could not be fetched: {where()} does not answer as a hub does; see HF_ENDPOINT"
    return f"{name} could not be fetched: {type(error).__name__}: {first_line(error)}"


def _of_network(error: BaseException) -> bool:
    """Whether an error is of a connection: one of the client's library, whichever that is, or of the system."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(
        names & {"TransportError", "TimeoutException"}
    )


def not_cached(name: HubName, folder: Path | None) -> str:
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


def no_weights(name: HubName, files: Iterable[str]) -> str:
    """Why a repository is no model that can be read."""
    files = set(files)
    gguf = [file for file in files if GGUF.names(Path(file))]
    if gguf:
        return f"{name} holds GGUF files; {which_gguf(name, gguf)}"
    if ADAPTER_CONFIG in files:
        return no_model(name)
    wanted = " or ".join(f"{one.config} with {one.weights}" for one in LAYOUTS[:2])
    return f"{name} has no weights under the names that a library gives them ({wanted}, or as .bin)"


def no_adapter(name: HubName, files: Iterable[str]) -> str:
    """Why a repository is no adapter that can be followed."""
    held = sorted(files)
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    return (
        f"{name} is no adapter of PEFT, which has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]}; it has "
        f"{', '.join(held[:_SHOWN])}{more}"
    )


def which_gguf(name: HubName, files: Iterable[str]) -> str:
    """What to give in place of a name that does not say which of several files is meant."""
    held = sorted(files)
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    at = f"@{name.revision}" if name.revision else ""
    return (
        f"say which is meant, as {name.repo}{at}:Q4_K_M by its quantisation, or as {SCHEME}{name.repo}{at}/{held[0]}: "
        f"{', '.join(held[:_SHOWN])}{more}"
    )
