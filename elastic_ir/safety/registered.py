"""Classes of transformers that its registry knows, and networks made of them from what a file says.

Only here does a constructor get values from a file: of a model class that transformers or another library itself
defines, on the meta device, of values that :mod:`elastic_ir.safety.config_values` lets through, under a
:mod:`elastic_ir.safety.guard`. Code that comes with a model (``auto_map``) is never looked at. torch and transformers
are imported in the functions.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import ElasticError, SourceError, one_line
from elastic_ir.extras import import_extra, without_bars
from elastic_ir.safety.config_values import plain_values
from elastic_ir.safety.guard import guarded

if TYPE_CHECKING:
    import torch

#: Tensors keep the dtype that they have; the name is the older of the two that transformers takes.
_AUTO = {"torch_dtype": "auto"}
#: Modules and parameters of a network: at most in all, and by how many tensors a checkpoint has. Most have one module
#: for each tensor or two; parts that a checkpoint leaves out, and lists of small ones, are allowed for.
_PARTS, _SOME_PARTS, _PARTS_EACH = 200_000, 5_000, 20


def model_class(config: Mapping[str, Any], where: str) -> Any:
    """The model class of transformers that a ``config.json`` names: of its ``architectures``, for its ``model_type``.

    Raises SourceError where transformers has no such pair, or is not installed.
    """
    import_extra("transformers", "transformers", "the network of a folder")
    from transformers import CONFIG_MAPPING

    names, model_type = config.get("architectures"), config.get("model_type")
    name = names[0] if isinstance(names, list) and names else None
    if not (isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
        raise SourceError(f"{where} names no architecture that transformers has ({names})")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise SourceError(f"{where} names no model_type that transformers has ({model_type})")
    for package in _packages(name, model_type):
        try:
            found = getattr(importlib.import_module(package), name, None)
        except (ImportError, RuntimeError) as error:  # what the class needs is not installed
            raise SourceError(
                f"{where}: the class {name} cannot be imported ({one_line(error)[:200]})"
            ) from error
        if is_model(found):
            return found
    raise SourceError(
        f"{where} names no architecture that transformers has ({name}, for model_type {model_type})"
    )


def _packages(name: str, model_type: str) -> Iterator[str]:
    """The packages of transformers that a model class may be in: its model type's, then any that lists the class."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    yield f"transformers.models.{model_type_to_module_name(model_type)}"
    for table in [table for key, table in vars(modeling_auto).items() if key.endswith("_MAPPING_NAMES")]:
        for other, listed in table.items():
            if name == listed or (isinstance(listed, tuple | list) and name in listed):
                yield f"transformers.models.{model_type_to_module_name(other)}"


def is_model(kind: Any) -> bool:
    """Whether it is a model class that transformers itself defines."""
    from transformers import PreTrainedModel

    parts = getattr(kind, "__module__", "").split(".")
    return (
        isinstance(kind, type)
        and issubclass(kind, PreTrainedModel)
        and parts[:2] == ["transformers", "models"]
        and parts[-1].startswith("modeling_")
    )


def is_config(kind: Any) -> bool:
    """Whether it is a configuration class that transformers itself defines."""
    from transformers import PretrainedConfig

    parts = getattr(kind, "__module__", "").split(".")
    return isinstance(kind, type) and issubclass(kind, PretrainedConfig) and parts[0] == "transformers"


def configuration(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    """A configuration object of a class of transformers, from the dictionary form in a file.

    Raises SourceError where the class is none of transformers', where a value leads out of the file, and where the
    class does not take the values.
    """
    if not isinstance(data, Mapping):
        raise SourceError(f"{where} holds no configuration")
    wanted = getattr(kind, "model_type", "")
    inner = [part for part in data.values() if isinstance(part, Mapping) and part.get("model_type") == wanted]
    if wanted and data.get("model_type", wanted) != wanted and inner:
        data = inner[0]  # of one tower of a larger model
    return _made(lambda: kind.from_dict(plain_values(data, where)), where, "its configuration")


def network(
    kind: Any,
    config: Any,
    where: str,
    vouched: bool = False,
    device: str = "meta",
    tensors: int | None = None,
) -> torch.nn.Module:
    """A network of a model class; on the meta device, by default, and then without values.

    ``vouched`` is a class that the user trusts, of another package. ``tensors`` is how many the source holds, which
    bounds how large a network may come of it. Raises SourceError where the class is none of transformers', cannot be
    made of the configuration, or has many more parts than the source has tensors.
    """
    if not (vouched or is_model(kind)):
        raise SourceError(f"{where}: {getattr(kind, '__name__', kind)} is not a model class of transformers")
    return constructed(lambda: kind(config), where, f"the class {kind.__name__}", device, tensors)


def constructed(
    make: Callable[[], torch.nn.Module],
    where: str,
    what: str,
    device: str = "meta",
    tensors: int | None = None,
) -> torch.nn.Module:
    """What a library's own constructor makes of a file's values, which are plain, under a guard.

    Raises SourceError where it cannot make it, or makes many more parts than ``tensors``, which the source holds.
    """
    import torch

    most = _PARTS if tensors is None else min(_PARTS, _SOME_PARTS + _PARTS_EACH * tensors)

    def bounded() -> Any:
        with _at_most(most, where), torch.device(device):
            return make()

    made: torch.nn.Module = _made(bounded, where, what)
    return made


def network_of(config: Mapping[str, Any], where: str, device: str = "meta") -> torch.nn.Module:
    """The network that a ``config.json`` describes, in the class that it names. Raises SourceError as those above."""
    kind = model_class(config, where)
    return network(kind, configuration(kind.config_class, config, where), where, device=device)


@contextmanager
def _at_most(parts: int, where: str) -> Iterator[None]:
    """SourceError, from within, once a constructor has registered more modules and parameters than that."""
    from torch.nn.modules import module

    thread, made = threading.get_ident(), 0

    def count(*_: Any) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > parts:
            raise SourceError(
                f"{where} asks for a network of more than {parts} parts, many more than there are tensors"
            )

    hooks = [
        module.register_module_module_registration_hook(count),
        module.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def filled(kind: Any, config: Any, state: dict[str, torch.Tensor], where: str) -> torch.nn.Module:
    """A network of a model class with a checkpoint's tensors, which transformers renames where it has new names.

    Raises SourceError as :func:`network` does, and where the network has weights that the checkpoint lacks.
    """
    network(kind, config, where, tensors=len(state))  # refused here, before memory is taken
    with without_bars():
        made, report = _made(
            lambda: kind.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, **_AUTO
            ),
            where,
            f"the class {kind.__name__}",
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise SourceError(
            f"{where} names the class {kind.__name__}, which has {len(missing)} tensors that the folder lacks: "
            f"{', '.join(missing[:3])}"
        )
    module: torch.nn.Module = made
    return module


def _made(make: Callable[[], Any], where: str, what: str) -> Any:
    try:
        with guarded(f"{where}: {what}"):
            return make()
    except ElasticError:
        raise
    except Exception as error:  # a constructor may raise anything on values that it was not written for
        raise SourceError(
            f"{where}: {what} cannot be made ({type(error).__name__}: {one_line(error)[:200]})"
        ) from error


@contextmanager
def without_cache(network: torch.nn.Module) -> Iterator[None]:
    """No key-value cache object among a network's outputs, for the length of an export."""
    found: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    configs = {id(config): config for config in found if hasattr(config, "use_cache")}
    caches = {key: config.use_cache for key, config in configs.items()}
    try:
        for config in configs.values():  # an encoder and a decoder have one each
            config.use_cache = False
        yield
    finally:
        for key, config in configs.items():
            config.use_cache = caches[key]
