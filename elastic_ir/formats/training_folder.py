"""Folders that Accelerate's ``save_state`` leaves: each network, optimizer, scheduler and random state lies in a file.

Under FSDP networks and optimizers are folders of torch.distributed.checkpoint inside. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from elastic_ir.errors import SourceError
from elastic_ir.formats.dcp.folder import DcpSource, is_dcp
from elastic_ir.formats.model_folder import LAYOUTS, is_checkpoint, names_in
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.lazy import TensorData

#: Files and folders of networks; the first of them that has a network's number is the one that Accelerate reads. The
#: last, the index of several files, is what its ``save_model`` leaves, and is read by the caller's own code.
NETWORKS = tuple(
    re.compile(f"{stem}(?:_(?P<number>[0-9]+))?{end}")
    for stem, end in (
        ("model", r"\.safetensors"), ("pytorch_model", r"\.bin"), ("pytorch_model_fsdp", r"\.bin"),
        ("pytorch_model_fsdp", ""), ("model", r"\.safetensors\.index\.json"),
    )
)  # fmt: skip
OPTIMIZERS = re.compile(r"optimizer(?:_(?P<number>[0-9]+))?(?:\.bin)?")
#: What else may hold tensors that are a network's, such as an average of its weights.
CUSTOM = re.compile(r"custom_checkpoint_[0-9]+\.pkl")
#: What of such a folder no other one has.
_STATES = re.compile(r"random_states_[0-9]+\.pkl|optimizer(_[0-9]+)?\.bin")
#: One rank's pieces of a network, which only the same number of ranks puts together.
PIECES = re.compile(r"pytorch_model_fsdp(_[0-9]+)?_rank[0-9]+\.bin")


@dataclass(eq=False)
class TrainingFolder(Origin):
    """A folder of a training, and which of its networks is meant."""

    streamed: ClassVar[bool] = True
    folder_format: ClassVar[str] = "accelerate"
    folder: Path
    network: str  #: the name of its file or folder
    tensors: Mapping[str, TensorData]  #: of the network, by their names
    #: the parameters' names in the order in which they lie there
    parameters: tuple[str, ...]
    ordered: bool  #: whether that is the network's own order
    metadata: Mapping[str, str] = field(default_factory=dict)  #: of a file of safetensors
    sharded: DcpSource | None = None  #: the network where it is a folder of torch.distributed.checkpoint
    parts: tuple[str, ...] = ()  #: the files that it lies in, where ``network`` is their index
    #: the further folders that layers come from, in the order of their numbers from 1 on
    others: tuple[TrainingFolder, ...] = field(default=(), kw_only=True)

    def record_folder(self) -> Path:
        """The folder itself."""
        return self.folder

    def along(self) -> list[str]:
        """What lies beside the network."""
        names = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        return [name for name in names if name not in (self.network, *self.parts)]

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the folder."""
        return [
            ("checkpoint", f"{len(self.tensors)} tensors in {self.network}"),
            ("beside", ", ".join(self.along())),
        ]


def network_number(name: str) -> int | None:
    """The number of the network that a file or folder of that name holds; None where it is none of a network."""
    found = (pattern.fullmatch(name) for pattern in NETWORKS)
    return next((int(match["number"] or 0) for match in found if match), None)


def is_of_fsdp(name: str) -> bool:
    """Whether a network is one that FSDP saved, each with an optimizer of the same number."""
    return name.startswith("pytorch_model_fsdp")


def optimizer_number(name: str) -> int | None:
    """The number of an optimizer; None for what is none."""
    match = OPTIMIZERS.fullmatch(name)
    return int(match["number"] or 0) if match else None


def networks_in(folder: Path) -> list[str]:
    """The files and folders of a folder's networks, one for each number, in the order of the numbers."""
    found: dict[int, str] = {}
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for pattern in NETWORKS:
        for name in names:
            match = pattern.fullmatch(name)
            path = folder / name
            if match and (path.is_file() or is_dcp(path)):
                found.setdefault(int(match["number"] or 0), name)
    return [found[number] for number in sorted(found)]


def is_training_folder(folder: Path) -> bool:
    """Whether a folder is one of Accelerate's: networks without a configuration, with the states of a training."""
    names = names_in(folder)
    if any(layout.config in names for layout in LAYOUTS):
        return False
    states = any(_STATES.fullmatch(name) for name in names) or is_dcp(folder / "optimizer_0")
    return states and bool(networks_in(folder) or any(PIECES.fullmatch(name) for name in names))


def refuse_folders_inside(folder: Path) -> None:
    """SourceError for a training's folder whose networks are model folders inside, as diffusers has them saved.

    Its optimizer lists parameters by numbers in the order of the network's class, which no file beside it states.
    """
    if not any(_STATES.fullmatch(name) for name in names_in(folder)):
        return
    networks = sorted(path for path in folder.iterdir() if is_checkpoint(path))
    if networks:
        raise SourceError(
            f"{folder} holds the states of a training, and its networks in folders inside; give one of these: "
            f"{', '.join(map(str, networks))} (the optimizer's state follows in Python, by "
            "graph.remap_optimizer_state)"
        )
