"""Plots of a study, as PNG and SVG: accuracy over sparsity for each network, its methods side by side, and the lines
between trainings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from elastic_ir.extras import import_extra
from elastic_ir.training.reports.intervals import half_width
from elastic_ir.training.reports.report import Cell, Findings

Curves = dict[str, list[tuple[float, Cell]]]  # by label: cells by sparsity

_FORMATS = ("png", "svg")
_TICKETS = ("imp", "dense", "transform")
_MARKERS = "osD^v<>pP*XhH"


def draw(found: Findings, folder: Path) -> list[str]:
    """Write the plots into a folder and return the names of the PNG files; SourceError without matplotlib."""
    mpl = import_extra("matplotlib", "train", "a plot")
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = found.study.name  # equal numbers give equal files
    names = [name for network in found.study.networks for name in _curves(found, network, folder)]
    line = _lines(found, folder)
    return [*names, line] if line else names


def _axes(width: float = 6.4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, folder: Path, stem: str) -> str:
    for form in _FORMATS:
        figure.savefig(folder / f"{stem}.{form}", dpi=120, metadata={"Date": None} if form == "svg" else None)
    return f"{stem}.png"


def _curves(found: Findings, network: str, folder: Path) -> list[str]:
    curves: Curves = {}
    for label in found.labels(network):
        curve = [(s, cell) for s, cell in found.curve(network, label) if not cell.barriers]
        if curve:
            curves[label] = curve
    if not curves:
        return []
    figure, axes = _axes()
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(curves) <= 10 else "tab20"]
    style = {
        label: {
            "color": palette(place % palette.N), "marker": _MARKERS[place % len(_MARKERS)],
            "markersize": 4, "capsize": 2,
        }
        for place, label in enumerate(curves)
    }  # fmt: skip
    for label, curve in curves.items():
        # As the paper draws them: tickets, transformed or the target's own, solid, what they are compared with dashed.
        means = [cell.mean for _, cell in curve]
        bars = _bars(means, [cell.error for _, cell in curve], curve[0][1])
        axes.errorbar(
            [100 * s for s, _ in curve], means, yerr=bars,
            label=label, linewidth=1.4, linestyle="-" if found.methods.get(label) in _TICKETS else "--", **style[label],
        )  # fmt: skip
    axes.set(
        xlabel="sparsity, %",
        ylabel=_scale(cell for curve in curves.values() for _, cell in curve),
        title=f"{network} on {found.study.data['name']}",
    )
    axes.legend(fontsize=7, handlelength=3.5)
    name = _save(figure, folder, _stem(found, network))
    shared = [s for s in found.study.wanted if sum(any(at == s for at, _ in c) for c in curves.values()) > 1]
    return [name, _methods(found, network, folder, curves, shared, style)] if shared else [name]


def _methods(
    found: Findings, network: str, folder: Path, curves: Curves, shared: list[float], style: dict[str, Any]
) -> str:
    """All methods below each other at each sparsity that the study is about, where curves would hide one another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 + 3.2 * len(shared), 1.2 + 0.25 * len(curves)), layout="constrained")
    panels = figure.subplots(1, len(shared), sharey=True, squeeze=False)[0]
    for panel, sparsity in zip(panels, shared, strict=True):
        for place, (label, curve) in enumerate(curves.items()):
            for at, cell in curve:
                if at == sparsity:
                    panel.errorbar(
                        [cell.mean],
                        [place],
                        xerr=_bars([cell.mean], [cell.error], cell),
                        linestyle="",
                        **style[label],
                    )
        cells = (cell for curve in curves.values() for _, cell in curve)
        panel.set(xlabel=_scale(cells), title=f"{network}, {100 * sparsity:.1f} % sparse")
        panel.set_yticks(range(len(curves)), list(curves), fontsize=8)
        panel.grid(alpha=0.3)
    panels[0].invert_yaxis()
    return _save(figure, folder, _stem(found, f"{network}-methods"))


def _scale(cells: Iterable[Cell]) -> str:
    return "test loss" if all(cell.measure == "loss" for cell in cells) else "test accuracy, %"


def _bars(means: list[float], errors: list[float], cell: Cell) -> list[list[float]]:
    """How far error bars go down and up: none for a single seed, and no accuracy below 0 or above 100 %."""
    known = [error if math.isfinite(error) else 0.0 for error in errors]
    least, most = (0.0, 100.0) if cell.measure == "accuracy" else (-math.inf, math.inf)
    return [
        [min(error, mean - least) for mean, error in zip(means, known, strict=True)],
        [min(error, most - mean) for mean, error in zip(means, known, strict=True)],
    ]


def _lines(found: Findings, folder: Path) -> str:
    measured = {key: cell for key, cell in found.cells.items() if cell.lines}
    if not measured:
        return ""
    figure, axes = _axes()
    for place, ((network, label, sparsity), cell) in enumerate(measured.items()):
        columns = list(zip(*cell.lines, strict=True))
        shares = [place / (len(columns) - 1) for place in range(len(columns))]
        means = [fmean(column) for column in columns]
        color = f"C{place % 10}"
        for line in cell.lines:  # each seed's own, since barriers differ by more than their interval shows
            axes.plot(shares, line, color=color, linewidth=0.6, alpha=0.5)
        axes.errorbar(
            shares, means, yerr=_bars(means, [half_width(column) for column in columns], cell),
            color=color, capsize=2, elinewidth=0.7, marker=_MARKERS[place % len(_MARKERS)], markersize=4,
            linestyle="-" if found.methods.get(label) in _TICKETS else "--",
            label=f"{network}, {label}, {100 * sparsity:.0f} %",
        )  # fmt: skip
    axes.set(xlabel="share of the way between two trainings", ylabel=_scale(measured.values()))
    axes.legend(fontsize=7, handlelength=3.5)
    return _save(figure, folder, _stem(found, "connectivity"))


def _stem(found: Findings, part: str) -> str:
    """A file name of the study's and the part's, which are free text."""
    return re.sub(r"[^\w.-]+", "-", f"{found.study.name}-{part}")
