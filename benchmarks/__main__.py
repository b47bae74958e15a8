"""All figures at once: run the programs, compare with the table of figures, keep the run, write the table anew.

``python -m benchmarks`` runs every program of PROGRAMS on what should be a quiet machine, one after the other, and says
which figures are not reproduced: a median on the worse side of the range that the table states, or beyond its limit.
With ``--keep``, as in ``make bench``, a run is kept in ``benchmarks/figures.json`` with its time and machine.
``--write`` puts into ``benchmarks/figures.md`` the median and the range of each figure over its last three runs that
are at least an hour apart, and those of HEADLINES into README.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.figures import COLLECTED, Figure, machine, shown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLE, RUNS = Path(__file__).with_name("figures.md"), Path(__file__).with_name("figures.json")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
HEAD = "| what | median (range) | limit | runs |\n|---|---|---|---|\n"
APART, COUNTED = timedelta(hours=1), 3
ROOM = 12 << 30  #: bytes that the largest files need
#: The programs with their arguments, quick ones first.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "ticket_file": (), "discovery": (), "pipeline": (), "stretch": (), "tracing": (), "inspect_command": (),
    "compact": (), "rescale_residual": (), "large": (), "training_step": (), "startup": (), "headers": (), "memory": (),
    "onnx_stretch": (), "onnx_export": (), "checkpoint": ("--parameters", "1.1e9"), "gguf": (), "dcp": (), "growth": (),
    "lottery": (),
}  # fmt: skip
#: Those that measure against a copy which is on the disk in the end.
ON_DISK = {"onnx_stretch"}

#: The figures that README has, too.
HEADLINES = (
    "stretch a traced ResNet-50 to a ResNet-101 module, relative to `copy.deepcopy` of the ResNet-101",
    "tracing ResNet-50, relative to `torch.fx.symbolic_trace` and a run on fake tensors",
    "tracing BERT-base, relative to `torch.export.export`",
    "10 passes on a ResNet-152: pass manager and verification on top of the rewrites",
    '`elastic-ir --help`, relative to `python -c "import click"`',
    'stretch of a bare .pt, relative to `python -c "import torch"`',
    'stretch of our .pt, relative to `python -c "import torch"`',
    'stretch of our .pt, --no-check, relative to `python -c "import torch"`',
    "`elastic-ir diff --headers` of two 3 GB checkpoint folders, CPU time",
    "a 90 % sparse ResNet-56 as a `.ticket` file, relative to the dense `.safetensors` without a graph",
    "ONNX file of 400 MB, weights inside, stretched, relative to a copy of the result",
    "ONNX file of 400 MB, weights inside, stretched: peak of memory above the imports",
    "`elastic-ir export` of a ResNet-32 to ONNX with all checks, relative to a process with `torch.onnx.export`",
    "a checkpoint folder streamed from 22 to 32 layers (3.1 GB out), relative to `cp -r` of the result",
    "a checkpoint folder streamed from 22 to 32 layers (3.1 GB out): peak of memory",
    "the same layers by mergekit, relative to ours",
    "a GGUF file in Q8_0 stretched from 22 to 32 layers (1.1 billion parameters), relative to `cp` of the result",
    "a stretch of 1.0 TB in 210 files planned",
    "`to_module()` of a 2 GB network with half as many blocks more: peak relative to the result and one unit",
    "growth of rewriting from 5,598 to 55,998: exponent",
    "a training step of an 80% sparse ResNet-20, with enforced masks relative to without (batch 128)",
    "drift of ImageNet's MobileNetV2 with one more block per stage: `rescale-residual` relative to plain interpolation",
)


def measured(names: Iterable[str]) -> tuple[list[Figure], list[str]]:
    """The figures that programs print, and the programs that failed without one beyond its limit."""
    figures, failed = [], []
    for name in names:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            collected = Path(folder) / "figures.jsonl"
            command = [sys.executable, "-m", f"benchmarks.{name}", *PROGRAMS[name]]
            environment = {
                **os.environ,
                COLLECTED: str(collected),
                **({} if name in ON_DISK else _in_memory()),
            }
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # commands start as on anybody's machine
            status = subprocess.run(command, check=False, env=environment, cwd=ROOT).returncode
            lines = collected.read_text("utf-8").splitlines() if collected.exists() else []
        found = [_figure(json.loads(line)) for line in lines]
        figures += found
        if not found or (status and all(figure.held for figure in found)):
            failed.append(name)
    return figures, failed


def _in_memory() -> dict[str, str]:
    """Where temporary files go: into memory where there is room, since a disk's own work falls on one of a pair."""
    place = Path("/dev/shm")
    roomy = place.is_dir() and shutil.disk_usage(place).free > ROOM
    return {"TMPDIR": str(place)} if roomy and "TMPDIR" not in os.environ else {}


def _figure(table: dict[str, Any]) -> Figure:
    return Figure(**{**table, "values": tuple(table["values"])})


def stated(text: str) -> dict[str, tuple[float, float]]:
    """The range of each figure that a table states, by its name; a single number is a range of one."""
    rows = re.findall(
        r"^\| (.+?) \| ([^|]+) \| [^|]+ \|(?: \d+ \|)?$", text.partition(BEGIN)[2].partition(END)[0], re.M
    )
    found = {}
    for name, numbers in rows:
        values = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", numbers)]
        if values:
            found[name] = (min(values), max(values))
    return found


def unlike(figures: Iterable[Figure], table: dict[str, tuple[float, float]]) -> list[str]:
    """A sentence for each figure that is worse than what the table states, beyond its limit, or not in the table."""
    said = []
    for figure in figures:
        if not figure.held:
            said.append(f"beyond its limit: {figure}")
            continue
        if figure.name not in table:
            said.append(f"not in the table: {figure}")
            continue
        low, high = table[figure.name]
        now = float(shown(figure.median))
        if now < low if figure.at_least else now > high:
            said.append(f"not reproduced, the table has {shown(low)} to {shown(high)}: {figure}")
    return said


def counted(runs: Sequence[dict[str, Any]], name: str) -> list[Figure]:
    """A figure in its last three runs that are at least an hour apart, newest first."""
    chosen: list[Figure] = []
    last: datetime | None = None
    for run in sorted(runs, key=lambda run: str(run["at"]), reverse=True):
        at = datetime.fromisoformat(run["at"])
        found = [row for row in run["figures"] if row["name"] == name]
        if found and (last is None or last - at >= APART):
            chosen.append(_figure(found[0]))
            last = at
    return chosen[:COUNTED]


def table_of(runs: Sequence[dict[str, Any]], only: Sequence[str] = ()) -> str:
    """A row for each figure, or for some: the median of all rounds of its runs, their range, how many runs."""
    latest = {row["name"]: run["at"] for run in runs for row in run["figures"]}
    current = max(runs, key=lambda run: (len(run["figures"]), run["at"]))
    order = [*(row["name"] for row in current["figures"]), *latest]
    rows = []
    for name in dict.fromkeys(order):
        if only and name not in only:
            continue
        found = counted(runs, name)
        newest, values = found[0], [value for figure in found for value in figure.values]
        spread = f" ({shown(min(values))} to {shown(max(values))})" if min(values) != max(values) else ""
        limit = f"{'at least ' if newest.at_least else ''}{shown(newest.limit)}{newest.unit}"
        median = shown(statistics.median(values))
        missed = "" if Figure(name, tuple(values), newest.limit, newest.at_least).held else ", missed"
        rows.append(f"| {name} | {median}{spread}{newest.unit} | {limit}{missed} | {len(found)} |\n")
    return HEAD + "".join(rows)


def written(text: str, runs: Sequence[dict[str, Any]], only: Sequence[str] = ()) -> str:
    """A page with the table of these runs, and when and where they were made."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    days = sorted({run["at"][:10] for run in runs})
    made = f"Measured {' and '.join(days)} on {runs[-1]['machine']}."
    return f"{head}{BEGIN}\n\n{table_of(runs, only)}\n{made}\n\n{END}{tail}"


def main() -> int:
    """Run, compare, keep, and write; 1 where a figure is not reproduced or a program failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PROGRAMS, []], metavar="PROGRAM", help="only these")
    parser.add_argument(
        "--keep", action="store_true", help="keep the run; for a machine where nothing else runs"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the tables from the runs kept; runs nothing"
    )
    options = parser.parse_args()
    runs = json.loads(RUNS.read_text("utf-8")) if RUNS.exists() else []
    if options.write:
        TABLE.write_text(written(TABLE.read_text("utf-8"), runs), "utf-8")
        README.write_text(written(README.read_text("utf-8"), runs, HEADLINES), "utf-8")
        return 0
    begin = time.monotonic()
    on = machine("torch", "onnx", "onnxruntime", "numpy")
    figures, failed = measured(options.names or PROGRAMS)
    said = unlike(figures, stated(TABLE.read_text("utf-8")))
    if options.keep:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        runs.append({"at": at, "machine": on, "figures": [figure.__dict__ for figure in figures]})
        RUNS.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
    print(f"\n{len(figures)} figures in {(time.monotonic() - begin) / 60:.0f} minutes on {on}")
    print("\n".join(said) or "all are reproduced")
    for name in failed:
        print(f"failed: benchmarks.{name}")
    return int(bool(said or failed))


if __name__ == "__main__":
    raise SystemExit(main())
