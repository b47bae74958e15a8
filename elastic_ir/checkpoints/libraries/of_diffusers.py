"""diffusers: a model's folder, alone or as a component of a pipeline; ``_class_name`` names the class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from elastic_ir.checkpoints.libraries.library import Config, Library, Report, Shape
from elastic_ir.errors import SourceError
from elastic_ir.extras import import_extra
from elastic_ir.safety import registered
from elastic_ir.safety.config_values import plain_values

#: How weights are packed, which does not affect names and shapes.
_LEFT_OUT = "quantization_config"


class Diffusers(Library):
    """Models of diffusers."""

    name = "diffusers"
    extra = "diffusers"
    imports = "diffusers.models.modeling_utils"
    code = "diffusers.models."
    count = "num_layers"

    def recognises(self, config: Config) -> bool:
        return isinstance(config.get("_class_name"), str) and "model_type" not in config

    def network(self, config: Config, where: str, device: str = "meta") -> Any:
        kind = _class_of(config["_class_name"], where)
        values = plain_values({name: value for name, value in config.items() if name != _LEFT_OUT}, where)
        return registered.constructed(
            lambda: kind.from_config(values), where, f"the class {kind.__name__}", device
        )

    def loading(self, module: Any, tensors: Mapping[str, Shape]) -> Report:
        names: dict[str, Shape] = dict(tensors)
        rename = getattr(module, "_fix_state_dict_keys_on_load", None)
        if rename is not None:  # attention of old checkpoints, whose layers had other names
            rename(names)
        return super().loading(module, names)

    def ignored(self, module: Any) -> Iterable[str]:
        return module._keys_to_ignore_on_load_unexpected or ()

    def stated(self, config: Config, module: Any, where: str) -> dict[str, Any]:
        given = {name: value for name, value in module.config.items() if not name.startswith("_")}
        return {**given, **config}


def _class_of(name: str, where: str) -> Any:
    """A model class that diffusers itself defines. SourceError where it has none of that name, or is not there."""
    diffusers = import_extra("diffusers", Diffusers.extra, where)
    try:
        from diffusers.models.modeling_utils import ModelMixin

        kind = getattr(diffusers, name, None) if name.isidentifier() and not name.startswith("_") else None
    except (ImportError, RuntimeError) as error:  # what the class needs is not installed
        text = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{where}: the class {name[:100]} of diffusers cannot be imported ({text})"
        ) from error
    if not (
        isinstance(kind, type) and issubclass(kind, ModelMixin) and kind.__module__.startswith("diffusers.")
    ):
        raise SourceError(f"{where} names no model class that diffusers has ({name[:100]})")
    return kind
