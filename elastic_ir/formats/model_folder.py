"""What emission needs again of a checkpoint folder that was read by its headers alone. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from elastic_ir.errors import SourceError
from elastic_ir.ir.info import Origin

if TYPE_CHECKING:
    from elastic_ir.ir.counts import Count
    from elastic_ir.tensors.gathered import ByLayer

#: The configuration beside the weights, in most folders.
CONFIG = "config.json"
#: Masks, and what was done to a checkpoint, as ElasticIR writes them.
MASKS, RECORD = "model.masks.safetensors", "elastic_ir.json"
#: What a pipeline of diffusers has in place of a configuration; its networks lie in folders inside.
PIPELINE = "model_index.json"
#: What lists the parts of a model of sentence-transformers: those that run one after the other, and those that one
#: chooses among.
MODULES, ROUTER = "modules.json", "router_config.json"


#: The names of indices of weights that lie in several files, those of a variant included.
INDEX = re.compile(r".+\.(?:safetensors|bin)\.index(?:\.\w+)?\.json")


@dataclass(frozen=True)
class Layout:
    """The names under which a library looks for a configuration and weights."""

    config: str
    stem: str  #: of the safetensors
    #: that of files of ``torch.save``, with its ending; read where there are no safetensors, and never written
    bin: str
    #: what stands between: ``fp16`` in ``model.fp16.safetensors``, which its users ask for by ``variant="fp16"``
    variant: str = ""

    @property
    def weights(self) -> str:
        """One file of weights."""
        return f"{self._stem}.safetensors"

    @property
    def index(self) -> str:
        """The index where the weights lie in several files."""
        return self._index(f"{self.stem}.safetensors")

    @property
    def saved(self) -> tuple[str, str]:
        """One file of ``torch.save``, and the index of several."""
        stem, _, end = self.bin.rpartition(".")
        return f"{stem}{self._dotted}.{end}", self._index(self.bin)

    def shard(self, number: int, count: int) -> str:
        """One of several files of weights."""
        return f"{self._stem}-{number:05}-of-{count:05}.safetensors"

    @property
    def forms(self) -> tuple[tuple[str | None, str | None], ...]:
        """The names of one file of weights, or of an index, in the order in which libraries look for them."""
        whole, index = self.saved
        return (self.weights, None), (None, self.index), (whole, None), (None, index)

    def among(self, names: Iterable[str]) -> list[str]:
        """The first of its files of weights, or of its indices, that is one of these names; none where none is."""
        held = set(names)
        return next(([name] for form in self.forms if (name := str(form[0] or form[1])) in held), [])

    def variants(self, names: Iterable[str]) -> list[Layout]:
        """The layouts of the variants that files of these names hold, in the order of their names."""
        stems = "|".join(re.escape(stem) for stem in (self.stem, self.bin.rpartition(".")[0]))
        whole = re.compile(rf"(?:{stems})\.(\w+)\.(?:safetensors|bin)")
        index = re.compile(rf"(?:{stems})\.(?:safetensors|bin)\.index\.(\w+)\.json")
        found = {
            match[1]
            for name in names
            if name != MASKS
            for match in [whole.fullmatch(name) or index.fullmatch(name)]
            if match
        }
        return [replace(self, variant=name) for name in sorted(found)]

    @property
    def _dotted(self) -> str:
        return f".{self.variant}" if self.variant else ""

    @property
    def _stem(self) -> str:
        return f"{self.stem}{self._dotted}"

    def _index(self, file: str) -> str:
        return f"{file}.index{self._dotted}.json"


#: The layouts of transformers and timm, of diffusers, and of OpenCLIP.
LAYOUTS = (
    Layout(CONFIG, "model", "pytorch_model.bin"),
    Layout(CONFIG, "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
    Layout("open_clip_config.json", "open_clip_model", "open_clip_pytorch_model.bin"),
)


def layouts_among(names: Iterable[str]) -> list[Layout]:
    """The layouts, variants behind plain ones, that have weights among files of these names.

    Those whose configuration is there too; if it is there for none, all.
    """
    held = set(names)
    there = [layout for layout in LAYOUTS if layout.among(held)]
    there += [variant for layout in LAYOUTS for variant in layout.variants(held)]
    return [layout for layout in there if layout.config in held] or there


def chosen_layout(names: Iterable[str], variant: str | None = None) -> Layout | None:
    """The layout of files of these names: of a variant if one is named, plain if there is one, else the only variant.

    None where nothing of them is weights, the variant is not among them, or there are only several.
    """
    there = layouts_among(names)
    if variant is None and there and not there[0].variant:
        return there[0]
    found = [layout for layout in there if variant is None or layout.variant == variant]
    return found[0] if len({layout.variant for layout in found}) == 1 else None


def refused_variant(names: Iterable[str], where: object, variant: str | None) -> SourceError:
    """Why none of the variants of weights under these names is taken; ``where`` they lie begins the line."""
    held = sorted({layout.variant for layout in layouts_among(names)} - {""})
    if variant is None:
        return SourceError(
            f"{where} holds weights as {', '.join(held)} and none without a variant; state which are meant, by "
            f"--variant {held[0]} (variant=)"
        )
    has = (
        f"it has {', '.join(held)}" if held else "it has none of any variant; leave out --variant (variant=)"
    )
    return SourceError(f"{where} holds no weights of the variant {variant!r}; {has}")


def layout_of(folder: Path, variant: str | None = None) -> Layout:
    """The layout of a folder, see :func:`chosen_layout`; where there are no weights, the one of its configuration.

    Raises SourceError where there are weights, and which are meant is not known or they are not there.
    """
    names = names_in(folder)
    found = chosen_layout(names, variant)
    if found is None and (variant is not None or layouts_among(names)):
        raise refused_variant(names, folder, variant)
    return found or next((layout for layout in LAYOUTS if layout.config in names), LAYOUTS[0])


def names_in(folder: Path) -> set[str]:
    """The names of the files in a folder; links that lead nowhere are none."""
    return {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds weights under the names that a library gives them."""
    return bool(layouts_among(names_in(path)))


def is_compound(folder: Path) -> bool:
    """Whether a folder states that it has parts, see :mod:`elastic_ir.formats.compound_folder`."""
    return any((folder / name).is_file() for name in (PIPELINE, MODULES, ROUTER))


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
    def folder(self) -> Path:
        """Where it lies as far as it is here."""

    @property
    def url(self) -> str:
        """Where it lies, without credentials; nothing for a model of the hub, which is known by its name."""

    @property
    def unfetched(self) -> str:
        """Why files beside the weights may be missing; nothing where none is."""

    def shard(self, name: str) -> tuple[Mapping[str, Any], dict[str, str]] | None:
        """The tensors and the metadata of a file of weights that is not here, by its header; None for all others."""

    def fetch(self, shards: Iterable[str], tell: Callable[[int, int], None] | None = None) -> None:
        """Have these files of weights here."""

    def fetch_record(self) -> None:
        """Have the record here, if there is one."""

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
    #: what the entries of its configuration count; None until its network was asked
    counted: tuple[Count, ...] | None = None
    summary: tuple[tuple[str, str], ...] = ()  #: what a reader wants to know, each with what it is called
    #: the further folders that layers come from, in the order of their numbers from 1 on
    others: tuple[CheckpointSource, ...] = field(default=(), kw_only=True)
    #: by name what of it is not here yet; None for an ordinary folder
    awaited: Awaited | None = field(default=None, kw_only=True)
    places: Mapping[str, str] = field(default_factory=dict, kw_only=True)  #: of awaited tensors, their files
    #: the folder of which this one is a part that its result is written with, where there is one: a pipeline's
    whole: Path | None = field(default=None, kw_only=True)

    @property
    def inner(self) -> str:
        """Where it lies in the whole, as what the names of its files begin with: ``transformer/``, or nothing."""
        return f"{self.folder.relative_to(self.whole).as_posix()}/" if self.whole is not None else ""

    @property
    def label(self) -> str:
        """What records call it: its URL, or see :func:`label_of`; a part of a whole by both names."""
        if self.awaited is not None and self.awaited.url:
            return self.awaited.url
        known = self.whole is None or cached_model(self.folder) is not None
        return (
            label_of(self.folder)
            if known
            else f"{label_of(self.whole or self.folder)}/{self.inner.rstrip('/')}"
        )

    def record_folder(self) -> Path:
        """The folder itself."""
        return self.folder

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the folder."""
        return list(self.summary)
