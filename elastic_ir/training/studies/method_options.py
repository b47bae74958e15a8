"""Options of a study's methods: which ones each takes, and what their values may be, known before anything is trained.

A value that a method would refuse costs the whole search if nobody looks at it earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from elastic_ir.errors import MaskError, PlanError
from elastic_ir.plans.plan import check_drop, check_order

#: The options of each method that has any; those of RigL and DPF are their callbacks' (:mod:`.dynamic_callbacks`).
OPTIONS: dict[str, tuple[str, ...]] = {
    "transform": ("order", "replicate", "drop", "permute_copies", "permute_masks", "new_weights"),
    "hybrid": ("order", "replicate", "drop"),
    "rigl": ("distribution", "interval", "drop_fraction", "end"),
    "dpf": ("interval", "initial", "start", "end"),
}


def check_options(method: str, options: Mapping[str, Any], steps: int, sparsities: Iterable[float]) -> None:
    """PlanError for an option that a method does not have, and for a value that it would refuse.

    ``steps`` is how many it trains, ``sparsities`` those that it is asked for. Blocks are looked at without a network,
    so that one which a stage does not have is not found here.
    """
    allowed = OPTIONS.get(method, ())
    for name, value in options.items():
        if name not in allowed:
            has = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            raise PlanError(f"{method} has no option {name!r}; {has}")
        _VALUES[name](name, value)
    if method not in ("rigl", "dpf"):
        return
    from elastic_ir.training.pruning.dynamic import check_dpf, check_rigl  # late: it imports torch

    ranges = {name: value for name, value in options.items() if name != "distribution"}
    try:
        if method == "rigl":
            check_rigl(steps, **ranges)
        else:
            for sparsity in sparsities:
                check_dpf(sparsity, steps, **ranges)
    except MaskError as error:
        raise PlanError(f"{method}: {error}") from error


def _order(name: str, value: Any) -> None:
    check_order(value)


def _blocks(name: str, value: Any) -> None:
    if not isinstance(value, list) or not value or any(type(item) is not int or item < 0 for item in value):
        raise PlanError(
            f"{name} is a list of blocks such as [1, 2], counted from 0 in each stage, not {value!r}"
        )


def _drop(name: str, value: Any) -> None:
    if isinstance(value, str):
        check_drop(value)
    else:
        _blocks(name, value)


def _flag(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise PlanError(f"{name} is true or false, not {value!r}")


def _whole(name: str, value: Any) -> None:
    if type(value) is not int:
        raise PlanError(f"{name} is a whole number of steps, not {value!r}")


def _number(name: str, value: Any) -> None:
    if type(value) not in (int, float):
        raise PlanError(f"{name} is a number from 0 to 1, not {value!r}")


def _distribution(name: str, value: Any) -> None:
    from elastic_ir.analysis.pruning.distributions import DISTRIBUTIONS  # late: it imports torch

    if value not in tuple(DISTRIBUTIONS):
        raise PlanError(f"there is no distribution {value!r}; there are {', '.join(DISTRIBUTIONS)}")


_VALUES: dict[str, Callable[[str, Any], None]] = {
    "order": _order, "replicate": _blocks, "drop": _drop, "permute_copies": _flag, "permute_masks": _flag,
    "new_weights": _flag, "distribution": _distribution, "interval": _whole, "drop_fraction": _number,
    "initial": _number, "start": _number, "end": _number,
}  # fmt: skip
