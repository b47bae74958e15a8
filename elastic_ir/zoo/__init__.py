"""The example networks of the elastic ticket paper; any factory here is a source: ``elastic_ir.zoo:cifar_resnet20``.

Nothing else in the package imports this one: discovery knows no architecture by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_ir.lazy_names import lazy_names

if TYPE_CHECKING:
    from elastic_ir.zoo.resnet import (
        CifarResNet,
        Names,
        OpenLTHResNet,
        cifar_resnet,
        cifar_resnet14,
        cifar_resnet20,
        cifar_resnet32,
        cifar_resnet44,
        cifar_resnet56,
        cifar_resnet110,
        cifar_resnet1202,
    )
    from elastic_ir.zoo.vgg import (
        CifarVGG,
        OpenLTHVGG,
        cifar_vgg,
        cifar_vgg13,
        cifar_vgg16,
        cifar_vgg19,
    )

__all__ = [
    "CifarResNet",
    "CifarVGG",
    "Names",
    "OpenLTHResNet",
    "OpenLTHVGG",
    "cifar_resnet",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
    "cifar_vgg",
    "cifar_vgg13",
    "cifar_vgg16",
    "cifar_vgg19",
]

_HOMES = {name: "vgg" if "vgg" in name.lower() else "resnet" for name in __all__}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
