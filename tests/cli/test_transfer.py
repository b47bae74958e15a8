"""The bar of bytes, rate and time left: what it shows, and where it begins."""

from __future__ import annotations

import sys

import pytest
from rich.progress import Progress

from elastic_ir.cli import tables


def test_nobody_looks() -> None:
    with tables.transfer("writing") as tell:
        assert tell is None


def test_what_was_there_at_the_start_is_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = iter(range(1000))
    bars: list[Progress] = []
    begin = Progress.__init__

    def kept(bar: Progress, *columns: object, **settings: object) -> None:
        begin(bar, *columns, get_time=lambda: float(next(clock)), **settings)  # type: ignore[arg-type]
        bars.append(bar)

    monkeypatch.setattr(Progress, "__init__", kept)
    with tables.transfer("writing [out]") as tell:
        assert tell is not None
        tell(5_000_000_000, 5_000_004_000)
        tell(5_000_002_000, 5_000_004_000)
        tell(5_000_004_000, 5_000_004_000)
        task = bars[0].tasks[0]
        assert (task.completed, task.total) == (5_000_004_000, 5_000_004_000)
        assert task.speed is not None and task.speed < 10_000
    shown = capsys.readouterr().err
    assert "writing [out]" in shown and "5.0/5.0 GB" in shown
