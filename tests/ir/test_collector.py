"""The pause of Python's collector: over with what it was for, however that ends, and never forced on a caller."""

from __future__ import annotations

import gc

import pytest

from elastic_ir.ir.collector import uncollected


@uncollected
def paused(fail: bool = False) -> bool:
    if fail:
        raise ValueError("wrong")
    return not gc.isenabled()


@uncollected
def outer() -> bool:
    return paused() and not gc.isenabled()


def test_it_ends_with_what_it_is_for() -> None:
    assert gc.isenabled()
    assert outer() and gc.isenabled()
    with pytest.raises(ValueError, match="wrong"):
        paused(fail=True)
    assert gc.isenabled()


def test_a_caller_without_a_collector_stays_so() -> None:
    gc.disable()
    try:
        assert outer() and not gc.isenabled()
    finally:
        gc.enable()
