"""What emission needs again of a checkpoint folder that was read by its headers alone. No torch here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from elastic_ir.ir.info import Origin

if TYPE_CHECKING:
    from elastic_ir.tensors.gathered import ByLayer

#: The configuration beside the weights, in most folders.
CONFIG = "config.json"
#: Masks, and what was done to a checkpoint, as ElasticIR writes them.
MASKS, RECORD = "model.masks.safetensors", "elastic_ir.json"
#: What a pipeline of diffusers has in place of a configuration; its networks lie in folders inside.
PIPELINE = "model_index.json"


@dataclass(frozen=True)
class Layout:
    """The names under which a library looks for a configuration and weights."""

    config: str
    stem: str  #: of the safetensors
    bin: (
        str  #: the same as ``torch.save`` writes them; read where there are no safetensors, and never written
    )

    @property
    def weights(self) -> str:
        """One file of weights."""
        return f"{self.stem}.safetensors"

    @property
    def index(self) -> str:
        """The index where the weights lie in several files."""
        return f"{self.weights}.index.json"

    def shard(self, number: int, count: int) -> str:
        """One of several files of weights."""
        return f"{self.stem}-{number:05}-of-{count:05}.safetensors"

    @property
    def forms(self) -> tuple[tuple[str | None, str | None], ...]:
        """The names of one file of weights, or of an index, in the order in which libraries look for them."""
        return (self.weights, None), (None, self.index), (self.bin, None), (None, f"{self.bin}.index.json")

    def has_weights(self, folder: Path) -> bool:
        """Whether a folder holds weights under these names."""
        return any((folder / str(file or index)).is_file() for file, index in self.forms)


#: The layouts of transformers and timm, of diffusers, and of OpenCLIP.
LAYOUTS = (
    Layout(CONFIG, "model", "pytorch_model.bin"),
    Layout(CONFIG, "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
    Layout("open_clip_config.json", "open_clip_model", "open_clip_pytorch_model.bin"),
)


def layout_of(folder: Path) -> Layout:
    """The layout of a folder: the first of which the configuration and weights are there, else either."""
    there = [layout for layout in LAYOUTS if layout.has_weights(folder)]
    whole = [layout for layout in there or LAYOUTS if (folder / layout.config).is_file()]
    return (whole or there or LAYOUTS)[0]


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds weights under the names that a library gives them."""
    return path.is_dir() and any(layout.has_weights(path) for layout in LAYOUTS)


def cached_model(path: Path) -> tuple[str, str, str] | None:
    """The model, commit and inner path of what lies in a hub's cache: of ``models--ORG--NAME/snapshots/COMMIT/...``.

    None for a path elsewhere. A link to such a folder counts as the folder.
    """
    for whole in dict.fromkeys((Path(os.path.abspath(path)), path.resolve())):
        parts = whole.parts
        for at, part in enumerate(parts[:-2]):
            if part.startswith("models--") and parts[at + 1] == "snapshots":
                repo = part.removeprefix("models--").replace("--", "/")
                return repo, parts[at + 2], "/".join(parts[at + 3 :])
    return None


def label_of(path: Path) -> str:
    """What a folder or file is called in records and messages: ``ORG/NAME@COMMIT`` in a hub's cache, else its name."""
    found = cached_model(path)
    if found is None:
        return path.resolve().name
    repo, commit, inner = found
    return f"{repo}@{commit}/{inner}".rstrip("/")


def name_of(path: Path) -> str:
    """What a network is called after its folder: in a hub's cache after the model, not after the commit."""
    found = cached_model(path)
    return path.resolve().name if found is None or found[2] else found[0].rpartition("/")[2]


class Awaited(Protocol):
    """What is not here yet of a folder whose files come from elsewhere."""

    @property
    def layout(self) -> Layout: ...

    @property
    def unfetched(self) -> str:
        """Why files beside the weights may be missing; nothing where none is."""

    def shard(self, name: str) -> tuple[Mapping[str, Any], dict[str, str]] | None:
        """The tensors and the metadata of a file of weights that is not here, by its header; None for all others."""

    def fetch(self, shards: Iterable[str], tell: Callable[[int, int], None] | None = None) -> None:
        """Have these files of weights here."""

    def fetch_side(self, tell: Callable[[int, int], None] | None = None) -> None:
        """Have everything here that holds no weights."""


@dataclass(eq=False)
class CheckpointSource(Origin):
    """A folder, its configuration as data, and the files that its tensors lie in."""

    streamed: ClassVar[bool] = True
    folder: Path
    root: Path  #: outside of it no link may lead
    config: dict[str, Any]
    shards: tuple[Path, ...]
    layout: Layout = LAYOUTS[0]
    #: of the shards, the first one's where they differ
    metadata: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  #: of all its tensors
    #: for each stack, by its label, what each layer holds: its kind, as a number
    kinds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: how tensors beside the stacks are indexed by their layers; None until its network was asked
    indexed: Mapping[str, ByLayer] | None = None
    summary: tuple[tuple[str, str], ...] = ()  #: what a reader wants to know, each with what it is called
    #: the further folders that layers come from, in the order of their numbers from 1 on
    others: tuple[CheckpointSource, ...] = field(default=(), kw_only=True)
    #: by name what of it is not here yet; None for an ordinary folder
    awaited: Awaited | None = field(default=None, kw_only=True)
    places: Mapping[str, str] = field(default_factory=dict, kw_only=True)  #: of awaited tensors, their files

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the folder."""
        return list(self.summary)
