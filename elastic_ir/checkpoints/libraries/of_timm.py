"""timm: the ``architecture`` is the name of a function, to which ``model_args`` are given.

Most published folders have no ``model_args``: the function knows the depth. What it hands to the class is then read off
while it builds, so that a changed count can be stated as an argument.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from elastic_ir.checkpoints.libraries.library import Config, Library
from elastic_ir.errors import SourceError
from elastic_ir.extras import import_extra
from elastic_ir.safety import registered
from elastic_ir.safety.config_values import plain_values

_ARGS, _TRAINED = "model_args", "pretrained_cfg"


class Timm(Library):
    """Models of timm."""

    name = "timm"
    extra = "timm"
    imports = "timm"
    code = "timm.models."
    count = "model_args.depth"
    sharded = False

    def recognises(self, config: Config) -> bool:
        return (
            isinstance(config.get("architecture"), str)
            and not {"model_type", "architectures"} & config.keys()
        )

    def network(self, config: Config, where: str, device: str = "meta") -> Any:
        timm = import_extra("timm", self.extra, where)
        name = config["architecture"]
        if not timm.is_model(name):
            raise SourceError(f"{where} names no architecture that timm has ({name[:100]})")
        given = _arguments(config, where)
        trained = config.get(_TRAINED, config)
        # of what describes the trained weights, sizes alone make a difference to the network
        sizes = (
            {key: value for key, value in trained.items() if _is_plain(value)}
            if isinstance(trained, Mapping)
            else {}
        )
        for key in ("num_classes", *config.get(_ARGS, ())):
            sizes.pop(key, None)
        if isinstance(config.get("num_classes"), int):
            sizes["num_classes"] = config["num_classes"]
        return registered.constructed(
            lambda: timm.create_model(name, pretrained=False, pretrained_cfg=sizes, **given),
            where,
            f"the architecture {name}",
            device,
        )

    def stated(self, config: Config, module: Any, where: str) -> dict[str, Any]:
        if _TRAINED not in config:  # an old form, of which timm reads no arguments
            return dict(config)
        with _seen_arguments(type(module)) as seen:
            self.network(config, where)
        held = config.get(_ARGS) or {}
        return {**config, _ARGS: {**{key: value for key, value in seen.items() if _is_plain(value)}, **held}}


def _arguments(config: Config, where: str) -> dict[str, Any]:
    """What a configuration gives to the function; none of what says where weights are taken from."""
    import timm

    if _TRAINED not in config or not isinstance(config.get(_ARGS), Mapping):
        return {}
    own = inspect.signature(timm.create_model).parameters
    return {key: value for key, value in plain_values(config[_ARGS], where).items() if key not in own}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float)


@contextlib.contextmanager
def _seen_arguments(kind: type) -> Iterator[dict[str, Any]]:
    """The arguments that the first network of a class is given from now on, by their names."""
    seen: dict[str, Any] = {}
    made: Any = kind.__init__  # type: ignore[misc]  # the class's own, which is put back
    signature = inspect.signature(made)

    @functools.wraps(made)
    def observed(self: Any, *args: Any, **kwargs: Any) -> None:
        if not seen and type(self) is kind:
            bound = signature.bind(self, *args, **kwargs)
            more = {name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD}
            for name, value in list(bound.arguments.items())[1:]:
                seen.update(value if name in more else {name: value})
        made(self, *args, **kwargs)

    kind.__init__ = observed  # type: ignore[misc]
    try:
        yield seen
    finally:
        kind.__init__ = made  # type: ignore[misc]
