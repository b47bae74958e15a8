"""Plots of a study: accuracy over sparsity for each network, and the lines between trainings, as PNG and SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.training.report import Findings

_FORMATS = ("png", "svg")


def draw(found: Findings, folder: Path) -> list[str]:
    """Write the plots into a folder and return the names of the PNG files; SourceError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise SourceError("plots need matplotlib (pip install 'elastic-ir[train]')") from error
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = found.study.name  # equal numbers give equal files
    names = [name for network in found.study.networks if (name := _curves(found, network, folder))]
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


def _curves(found: Findings, network: str, folder: Path) -> str:
    figure, axes = _axes()
    drawn = 0
    for label in found.labels(network):
        curve = [(s, cell) for s, cell in found.curve(network, label) if not cell.barriers]
        if not curve:
            continue
        drawn += 1
        errors = [cell.error if math.isfinite(cell.error) else 0.0 for _, cell in curve]
        # Transformed tickets and the target's own as the paper draws them, solid; what they are compared with, dashed.
        ours = any(run in label for run in ("imp", "transform", "from", "IMP", "ETT"))
        axes.errorbar(
            [100 * s for s, _ in curve], [cell.mean for _, cell in curve], yerr=errors, label=label, capsize=2,
            marker="o", markersize=3, linewidth=1.4, linestyle="-" if ours else "--",
        )  # fmt: skip
    if not drawn:
        return ""
    axes.set(
        xlabel="sparsity, %", ylabel="test accuracy, %", title=f"{network} on {found.study.data['name']}"
    )
    axes.legend(fontsize=7)
    return _save(figure, folder, f"{found.study.name}-{network}".replace(" ", "-"))


def _lines(found: Findings, folder: Path) -> str:
    measured = {key: cell for key, cell in found.cells.items() if cell.lines}
    if not measured:
        return ""
    figure, axes = _axes()
    for (network, label, sparsity), cell in measured.items():
        points = len(cell.lines[0])
        means = [sum(line[i] for line in cell.lines) / len(cell.lines) for i in range(points)]
        axes.plot([i / (points - 1) for i in range(points)], means, marker="o", markersize=3,
                  label=f"{network}, {label}, {100 * sparsity:.0f} %")  # fmt: skip
    axes.set(xlabel="share of the way between two trainings", ylabel="test accuracy, %")
    axes.legend(fontsize=7)
    return _save(figure, folder, f"{found.study.name}-connectivity".replace(" ", "-"))
