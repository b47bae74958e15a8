"""Models of the Hugging Face hub by name, and the cache in which they lie. No network and no library here.

A cache holds ``models--ORG--NAME/refs/REVISION``, files with the commit that a branch or tag stood for, and
``models--ORG--NAME/snapshots/COMMIT``, folders of links to ``blobs``. So a model that is there is found by reading.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from elastic_ir.errors import SourceError
from elastic_ir.formats.files import read_json
from elastic_ir.formats.model_folder import INDEX, chosen_layout, names_in

SCHEME = "hf:"
_NAME = re.compile(
    r"(?P<repo>(?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?(?::(?P<quant>[\w][\w.-]*))?"
)
#: A GGUF file of a repository; of a revision with slashes only those that the hub itself makes are taken for one.
_FILE = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>refs/[\w-]+/[\w.-]+|[\w][\w.-]*))?/(?P<inner>[^/\\].*\.gguf)",
    re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: What names of files end in that are no formats of ours, or only by their content.
_FILES = (
    ".bin", ".ckpt", ".csv", ".gz", ".h5", ".json", ".msgpack", ".npz", ".pkl", ".tar", ".tgz", ".txt", ".yaml",
    ".yml", ".zip",
)  # fmt: skip
_LONGEST = 96  #: letters of a repository's name, as the hub has it
_YES = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubName:
    """A model on the hub, as it was named."""

    repo: str  #: ``ORG/NAME``, or ``NAME`` alone for some old ones
    revision: str | None = None  #: a branch, a tag or a commit; None for the main branch
    plain: bool = False  #: whether it was written without ``hf:``, so that a path may have been meant
    quant: str = ""  #: which of its GGUF files is meant: the one with this word in its name
    inner: str = ""  #: or the GGUF file itself

    def __str__(self) -> str:
        text = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return text + (f":{self.quant}" if self.quant else "") + (f"/{self.inner}" if self.inner else "")

    @property
    def is_gguf(self) -> bool:
        """Whether a GGUF file is meant, and not a folder."""
        return bool(self.quant or self.inner)

    @property
    def ref(self) -> str:
        return self.revision or "main"


def hub_name(text: str) -> HubName | None:
    """The model that a source names: ``hf:ORG/NAME``, or ``ORG/NAME`` where no such path exists; each also @REVISION.

    A GGUF file of it is named by its quantisation behind, ``:Q4_K_M``, or whole: ``hf:ORG/NAME/FILE.gguf``.
    None for what is, or looks like, a path or another name. Raises SourceError for what follows ``hf:`` and is no name.
    """
    given = text.removeprefix(SCHEME)
    match = (_FILE.fullmatch(given) if text.startswith(SCHEME) else None) or _NAME.fullmatch(given)
    repo = match["repo"] if match else ""
    fits = match is not None and ".." not in given and "--" not in repo and not repo.endswith((".git", "."))
    fits = fits and len(repo) <= _LONGEST
    if text.startswith(SCHEME):
        if not fits or match is None:
            raise SourceError(f"{text} names no model of the hub; write hf:ORG/NAME or hf:ORG/NAME@REVISION")
        parts = match.groupdict("")
        return HubName(repo, match["revision"], quant=parts.get("quant", ""), inner=parts.get("inner", ""))
    if match is None or not fits or "/" not in repo or os.path.lexists(text) or _is_file_name(repo):
        return None
    return HubName(repo, match["revision"], plain=True, quant=match["quant"] or "")


def _is_file_name(text: str) -> bool:
    from elastic_ir import formats

    return text.lower().endswith(_FILES) or any(form.names(Path(text)) for form in formats.OWN)


# -- the cache ---------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the hub's library keeps what it fetches, by the same variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def is_offline() -> bool:
    """Whether the user wants no network: ``HF_HUB_OFFLINE``, or ``TRANSFORMERS_OFFLINE``."""
    given = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return given.upper() in _YES


def repository_folder(repo: str) -> Path:
    """The folder of a model in the cache, whether it is there or not."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def snapshot_of(name: HubName) -> Path | None:
    """The folder in the cache that a name stands for, with whatever files are there; None where nothing is."""
    folder = repository_folder(name.repo)
    commit = name.ref
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / commit).read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    found = folder / "snapshots" / commit
    return found if _COMMIT.fullmatch(commit) and found.is_dir() else None


def commits_of(name: HubName) -> list[str]:
    """The commits of a model that are in the cache."""
    try:
        return sorted(os.listdir(repository_folder(name.repo) / "snapshots"))
    except OSError:
        return []


def is_whole(folder: Path, variant: str | None = None) -> bool:
    """Whether a snapshot holds a configuration and all files of weights, of a variant; others may be missing."""
    names = names_in(folder)
    layout = chosen_layout(names, variant)
    wanted = layout.among(names) if layout is not None and layout.config in names else []
    for name in wanted:
        if INDEX.fullmatch(name):
            wanted = [*wanted, *files_of_index(folder / name)]
    return bool(wanted) and names.issuperset(wanted)


def files_of_index(path: Path) -> list[str]:
    """The files that an index names; SourceError, as one line, where it cannot be read."""
    try:
        found = read_json(path)
        places = found.get("weight_map") if isinstance(found, dict) else None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    if not isinstance(places, dict):
        raise SourceError(f"{path} is damaged: its weight_map is not a table of tensors and files")
    return sorted({str(file) for file in places.values()})


def folder_of_label(label: str) -> Path | None:
    """What a record names as ``ORG/NAME@COMMIT``, or a file of it, in the cache; None for others, or if it is gone."""
    repo, at, rest = label.rpartition("@")
    commit, _, inner = rest.partition("/")
    name = _NAME.fullmatch(repo)
    if (
        not at
        or name is None
        or name["revision"]
        or name["quant"]
        or not _COMMIT.fullmatch(commit)
        or ".." in inner.split("/")
    ):
        return None
    found = snapshot_of(HubName(repo, commit))
    return found / inner if found is not None and (found / inner).exists() else None
