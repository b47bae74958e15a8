"""The numbers of a study as CSV: a row for each run, and one for each layer of each ticket, for one's own analysis."""

from __future__ import annotations

import csv
from pathlib import Path

from elastic_ir.formats.files import atomic_output
from elastic_ir.training.reports.report import Findings

RESULTS = (
    "network", "label", "method", "sparsity", "reached", "seed", "accuracy", "loss", "barrier", "flops", "seconds",
    "job",
)  # fmt: skip
LAYERS = ("network", "label", "method", "sparsity", "seed", "layer", "reached", "job")


def write_numbers(found: Findings, folder: Path, stem: str) -> list[str]:
    """Write ``STEM-results.csv`` and ``STEM-layers.csv`` and return their names.

    Sparsities and accuracies are shares of 1; ``sparsity`` is the one that was wanted, ``reached`` the ticket's own, in
    total or of the layer. Where a line between two trainings was measured, ``accuracy`` is the lowest on it, and
    ``loss``, which stands in its place where targets are not classes, the highest.
    """
    results, layers = [], []
    for row in found.rows:
        run, result = row.run, row.result
        head = (run.network, run.label, run.method, run.sparsity)
        results.append(
            (*head, result["sparsity"], run.seed, result.get("accuracy", ""), result.get("loss", ""),
             result.get("barrier", ""), result["flops"],
             round(result["seconds"], 3), run.job.key)
        )  # fmt: skip
        layers += [
            (*head, run.seed, layer, reached, run.job.key)
            for layer, reached in result.get("layers", {}).items()
        ]
    names = []
    for name, columns, rows in (("results", RESULTS, results), ("layers", LAYERS, layers)):
        names.append(f"{stem}-{name}.csv")
        with (
            atomic_output(folder / names[-1]) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
    return names
