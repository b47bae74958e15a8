"""Which names a pickle may hold, and what each may be used for: the allow-list of classes.

Nothing is imported from a package that is not allowed, and every name is judged by the object it leads to, not by
how it is spelt: an attribute reached through an allowed module (``torch.nn.modules.module.warnings``) is refused.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import SourceError, UntrustedError

if TYPE_CHECKING:
    from torch import nn

#: Packages that define networks: their modules may be imported for a name, and their classes rebuilt. Not the whole of
#: a distribution: elsewhere it holds programs, which run when they are imported, and modules that hold source code
#: (``torch.fx``, ``torch.jit``) or construct anything on request (``torch.distributed``).
PACKAGES = (
    "torch.nn", "torchvision.models", "torchvision.ops", "timm.models", "timm.layers", "transformers.models",
    "transformers.activations", "transformers.configuration_utils", "transformers.generation.configuration_utils",
    "transformers.modeling_layers", "transformers.modeling_utils", "transformers.pytorch_utils", "elastic_ir.tickets",
    "elastic_ir.zoo",
)  # fmt: skip
#: In ``transformers.models`` programs that convert checkpoints, and tokenizers, lie beside these.
_DEFINE = ("modeling_", "configuration_")

#: Where constructors touch nothing but tensors. Only these may be *called* later on by the network's own code, so
#: only these are handed out as classes; the others serve for making empty instances.
PURE_PACKAGES = ("torch.nn.modules", "torchvision.ops", "timm.layers", "elastic_ir.zoo")

#: Classes that are not modules: torch's own hooks for modules, torchvision's layer settings; empty instances only.
PLAIN_CLASSES = {
    "argparse.Namespace",
    "torch.nn.modules.module._WrappedHook",
    "torch.nn.utils.spectral_norm.SpectralNorm",
    "torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook",
    "torch.nn.utils.spectral_norm.SpectralNormStateDictHook",
    "torch.nn.utils.weight_norm.WeightNorm",
    "torchvision.models.convnext.CNBlockConfig",
    "torchvision.models.efficientnet.FusedMBConvConfig",
    "torchvision.models.efficientnet.MBConvConfig",
    "torchvision.models.mobilenetv3.InvertedResidualConfig",
    *(
        f"torch.nn.utils.prune.{name}"
        for name in (
            "CustomFromMask", "Identity", "L1Unstructured", "LnStructured", "PruningContainer", "RandomStructured",
            "RandomUnstructured",
        )
    ),
}  # fmt: skip

#: Functions that modules keep as attributes. A pickle can only hold them: it cannot call them.
FUNCTIONS = {
    f"{module}.{name}"
    for module in ("torch", "torch.nn.functional", "torch._C._nn")
    for name in (
        "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_softmax", "logsigmoid",
        "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "tanh",
    )
}  # fmt: skip


def within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def defines(module: str, trust: Sequence[str] = ()) -> bool:
    """Whether a module may be imported for a name in a file: of the packages that define networks, or trusted.

    ``__main__`` of a package is a program, trusted or not.
    """
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts) or any(map(_is_special, parts[1:])):
        return False
    if within(module, trust):
        return True
    if parts[:2] == ["transformers", "models"] and not parts[-1].startswith(_DEFINE):
        return False
    return within(module, PACKAGES)


def _is_special(part: str) -> bool:
    return part.startswith("__") and part.endswith("__")


def is_pure(item: Any, trust: Sequence[str]) -> bool:
    """Whether calling it with any arguments is harmless (or vouched for)."""
    if isinstance(item, type):
        return within(item.__module__, (*PURE_PACKAGES, *trust))
    return any(item is known for known in map(_function, FUNCTIONS) if known is not None)


def _function(name: str) -> Any:
    module, _, role = name.rpartition(".")
    return getattr(sys.modules.get(module), role, None)


def class_allowed(cls: type, trust: Sequence[str] = ()) -> bool:
    """Whether instances of a class may be rebuilt: modules, enums, configurations of the known packages; plain data.

    Of a package in ``trust`` every class may. Modules that hold code (GraphModule, ScriptModule) never may.
    """
    import torch
    from torch import nn

    if not isinstance(cls, type) or issubclass(cls, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return False
    if f"{cls.__module__}.{cls.__qualname__}" in PLAIN_CLASSES or within(cls.__module__, trust):
        return True
    if within(cls.__module__, ("elastic_ir.tickets",)):
        return True
    return within(cls.__module__, PACKAGES) and (
        issubclass(cls, (nn.Module, enum.Enum)) or _is_configuration(cls)
    )


def _is_configuration(cls: type) -> bool:
    bases = {f"{base.__module__}.{base.__name__}" for base in cls.__mro__}
    return bool(
        bases
        & {
            "transformers.configuration_utils.PretrainedConfig",
            "transformers.configuration_utils.PreTrainedConfig",
            "transformers.generation.configuration_utils.GenerationConfig",
        }
    )


def find(module: str, qualname: str, trust: Sequence[str], where: str) -> Any:
    """The class, listed function or torch constant of a name; nothing of it is called.

    Raises UntrustedError where it is not allowed, SourceError where it is allowed and cannot be imported here.
    """
    import torch

    full = f"{module}.{qualname}"
    values = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
    if full in FUNCTIONS and _function(full) is not None:
        return _function(full)
    if module == "torch" and isinstance(value := getattr(torch, qualname, None), values):
        return value
    if full == "argparse.Namespace":
        return argparse.Namespace
    if not defines(module, trust) or any(map(_is_special, qualname.split("."))):
        raise untrusted(module, qualname, where)
    found: Any = _import(module, qualname, where, vouched=within(module, trust))
    for step, role in enumerate(qualname.split(".")):
        if step and not (isinstance(found, type) and class_allowed(found, trust)):
            raise untrusted(module, qualname, where)
        try:
            found = getattr(found, role)
        except AttributeError as error:
            raise SourceError(
                f"{where}: the class {qualname} of {module} cannot be imported here: "
                + (
                    "it was defined in the script that saved it; load it there"
                    if module == "__main__"
                    else f"the installed {module.partition('.')[0]} has no such class; install the version that it was "
                    "saved with"
                )
                + ", or save a state dict (torch.save(model.state_dict(), NAME))"
            ) from error
    if not class_allowed(found, trust):
        raise untrusted(module, qualname, where)
    return found


def _import(module: str, qualname: str, where: str, *, vouched: bool) -> Any:
    """A module of an allowed package; one that the user has named is found in the working folder, too."""
    if module in sys.modules:
        return sys.modules[module]
    top = module.partition(".")[0]
    try:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not vouched or error.name != top:
                raise
        from elastic_ir.user_functions import working_folder_on_path

        with working_folder_on_path():
            return importlib.import_module(module)
    except Exception as error:  # whatever a package raises while it is imported
        remedy = f"install {top}" + (f", or run where {top} lies" if vouched else "")
        raise SourceError(
            f"{where}: the class {qualname} of {module} cannot be imported here ({error}): {remedy}, or save a "
            "state dict (torch.save(model.state_dict(), NAME))"
        ) from error


def untrusted(module: str, qualname: str, where: str) -> UntrustedError:
    """The refusal of a name, with the way to trust its package where that would help."""
    top = module.partition(".")[0]
    refusal = f"{where}: it names {module}.{qualname}, which a pickle may not hold; nothing of it was run. "
    if top != "__main__" and (top in sys.stdlib_module_names or top in ("torch", "numpy")):
        return UntrustedError(refusal + "A saved network has no need of it: save a state dict instead")
    if top in {package.partition(".")[0] for package in PACKAGES}:
        return UntrustedError(
            refusal + f"Only modules, enums and configurations of {top} are rebuilt; save a state dict"
        )
    from elastic_ir.user_functions import working_folder_on_path

    with working_folder_on_path():  # found or not, a top-level package is not imported by this
        there = top in sys.modules or _exists(top)
    if not there:
        refusal += f"The package {top} is not installed here either. "
    return UntrustedError(
        refusal
        + f'If you trust the package {top}, pass --trust {top} (in Python: trust=["{top}"]); it may then hold '
        "classes of it. Else ask for a state dict"
    )


def resolve_class(
    qualified_name: str, trust: Sequence[str] = (), where: str = "the description"
) -> type[nn.Module]:
    """The module class of a name, ``package.module:Class``.

    Modules are imported only inside the allowed packages and those of ``trust``. Raises UntrustedError and SourceError
    as :func:`find` does, and SourceError where the name is of something else than a module class.
    """
    from torch import nn

    module, colon, qualname = qualified_name.partition(":")
    if not colon:
        raise SourceError(f"{where}: {qualified_name!r} is not the name of a class, package.module:Class")
    found = find(module, qualname, trust, where)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SourceError(f"{where}: {qualified_name} is not a torch.nn.Module")
    return found


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False
