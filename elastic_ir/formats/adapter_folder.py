"""A folder with an adapter of PEFT: its settings, and one file of tensors that are named after a base's modules."""

from __future__ import annotations

from pathlib import Path

#: The settings, and the tensors: those that are read first, and written; and those of ``torch.save``.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_weights(folder: Path) -> Path | None:
    """The file of tensors of the adapter in a folder; None where there is no adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    return next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    from elastic_ir.formats.model_folder import is_checkpoint

    return adapter_weights(folder) is not None and not is_checkpoint(folder)


def is_of_adapter(path: Path) -> bool:
    """Whether a file is one of an adapter whose other files lie beside it: each alone is of no use to anybody."""
    known = path.name == ADAPTER_CONFIG or path.name in ADAPTER_WEIGHTS
    return known and adapter_weights(path.parent) is not None


def no_model(where: object) -> str:
    """What is said where a model is wanted, and ``where`` is an adapter."""
    return (
        f"{where} is an adapter of PEFT and no model; give the model that it belongs to, and 'elastic-ir follow "
        f"{where} --base CHANGED' carries the adapter over to what was made of that"
    )
