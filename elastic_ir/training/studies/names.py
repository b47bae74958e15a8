"""What a study names: its networks and its loss, found by name, and a check that all names exist.

No Lightning is imported here, so that a study can be checked where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from elastic_ir import user_functions
from elastic_ir.errors import ElasticError, PlanError
from elastic_ir.frontends.sources import on_meta
from elastic_ir.training.data import check_name, find_function

if TYPE_CHECKING:
    from elastic_ir.training.studies.study import Study
    from elastic_ir.training.task import Loss

_COLLECTIONS = ("timm", "torchvision")


def build(options: Mapping[str, Any]) -> nn.Module:
    """A study's network, initialized by its seed; the caller's generators are left as they were.

    ``options["network"]`` has its ``factory`` (``package.module:factory``, ``timm:NAME`` or ``torchvision:NAME``) and
    the arguments of that. Raises PlanError, and SourceError for a collection that has no such network.
    """
    network = dict(options["network"])
    module, colon, name = network.pop("factory").partition(":")
    if not colon:
        raise PlanError(
            f"{module!r} does not name a network; give PACKAGE.MODULE:FACTORY, timm:NAME or torchvision:NAME"
        )
    whole = f"{module}:{name}"
    factory: Callable[..., Any]
    if module in _COLLECTIONS:
        from elastic_ir.frontends import sources

        factory = partial(sources.build, whole)
    else:
        factory = find_function(whole, "the network's factory ", PlanError)
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"])
        made = user_functions.call(factory, whole, PlanError, network)
    if not isinstance(made, nn.Module):
        raise PlanError(f"the network's factory {whole} returns a {type(made).__name__}, not a torch module")
    return made


def loss_of(options: Mapping[str, Any]) -> Loss | None:
    """A study's loss: a function, or an object of the class that is named; None where it names none."""
    name = options.get("loss")
    if not name:
        return None
    found = find_function(name, "the loss ", PlanError)
    made: Loss = found() if isinstance(found, type) else found  # a class (torch.nn:MSELoss), or a function
    return made


def check_names(study: Study) -> dict[str, nn.Module]:
    """Check that what a study names exists, and return its networks: built once, without values, no data are loaded.

    Raises PlanError that names the study and the entry.
    """
    base = {"seed": study.seeds[0], "loss": study.loss}
    networks: dict[str, nn.Module] = {}

    def make(name: str) -> None:
        networks[name] = on_meta(lambda: build({**base, "network": study.networks[name]}))

    tries: list[tuple[str, Any]] = [
        ("data", lambda: check_name(study.data["name"])),
        ("loss", lambda: loss_of(base)),
        *((f"networks.{name}", partial(make, name)) for name in study.networks),
    ]
    for where, look in tries:
        try:
            look()
        except ElasticError as error:
            raise PlanError(f"{study.name}: {where}: {error}") from error
        except Exception as error:
            raise PlanError(f"{study.name}: {where}: fails: {type(error).__name__}: {error}") from error
    return networks
