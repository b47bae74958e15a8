"""An adapter of PEFT as a folder holds it: settings as data, tensors unread. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.read import inside, read_table, root_of
from elastic_ir.errors import SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG, adapter_weights
from elastic_ir.formats.bin import read_bin
from elastic_ir.formats.model_folder import is_checkpoint
from elastic_ir.formats.safetensors import read_safetensors
from elastic_ir.tensors.lazy import TensorData


@dataclass(frozen=True)
class Adapter:
    """An adapter: ``tensors`` are named as PEFT names them, ``base_model.model.`` and the module's path first."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorData]

    @property
    def kind(self) -> str:
        """What PEFT calls this sort of adapter: ``LORA``."""
        return str(self.config["peft_type"])

    @property
    def base(self) -> str:
        """The model that it was trained on, as its settings name it; nothing where they do not."""
        return str(self.config.get("base_model_name_or_path") or "")


def read_adapter(folder: Path, root: Path | None = None) -> Adapter:
    """The adapter in a folder; ``root`` is the folder out of which no link may lead, if not this one.

    Raises SourceError: there is none, its settings are damaged or do not state of which sort it is, or what the reader
    of its tensors finds wrong.
    """
    weights, root = adapter_weights(folder), root or root_of(folder)
    if not folder.exists():
        raise SourceError(f"{folder} does not exist")
    if weights is None:
        what = "a model" if is_checkpoint(folder) else "no adapter of PEFT"
        raise SourceError(
            f"{folder} is {what}; an adapter is a folder with {ADAPTER_CONFIG} and adapter_model.safetensors"
        )
    config = read_table(folder / ADAPTER_CONFIG, root)
    if not isinstance(config.get("peft_type"), str):
        raise SourceError(
            f"{folder / ADAPTER_CONFIG} does not state its peft_type, so it is not known what it is"
        )
    path = inside(weights, root)
    tensors: Mapping[str, TensorData] = read_bin(path) if path.suffix == ".bin" else read_safetensors(path)[0]
    return Adapter(folder, config, tensors)
