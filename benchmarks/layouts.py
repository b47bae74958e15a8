"""Networks of many libraries with unusual layouts: traced, compared with what their code says, changed and loaded.

    python -m benchmarks.layouts [--only TEXT] [--table MODULE] [--library NAME] [--workers 2] [--summary]

The networks are those of `benchmarks/layout_networks`, with random weights; `layouts-requirements.txt` has the
libraries, and a network whose library is missing is broken. Each is examined (`benchmarks.layout_check`) in a process
of its own with limits of computing time and memory, forked from one that has the imports. Results go to a file as they
come, one JSON line a network, and a run that was stopped goes on; `--fresh` examines those chosen once more.
`benchmarks/layouts.md` is written from it at the end; `--summary` only judges the results anew and writes it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import select
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.layout_networks import networks, tables
from benchmarks.layout_networks.entry import Network
from benchmarks.layout_table import report, verdict

RESULTS = Path(__file__).with_name("layouts_results.jsonl")
TABLE = Path(__file__).with_name("layouts.md")
WAIT = 20  #: times the limit of computing that a network may take by the clock: a busy machine does not count
#: What takes seconds to import, by library.
PRELOADED = {
    "transformers": ["transformers.modeling_utils", "transformers.masking_utils"],
    "diffusers": ["diffusers.models.modeling_utils", "diffusers.models.transformers.transformer_flux"],
    "torch_geometric": ["torch_geometric.nn"],
    "monai": ["monai.networks.nets"],
    "segmentation-models-pytorch": ["segmentation_models_pytorch"],
    "speechbrain": ["speechbrain.lobes.models.transformer.Conformer"],
    "ultralytics": ["ultralytics.nn.tasks"],
    "tsai": ["tsai.models.InceptionTime"],
    "neuralforecast": ["neuralforecast.models"],
    "braindecode": ["braindecode.models"],
    "asteroid": ["asteroid.masknn"],
    "litgpt": ["litgpt"],
    "torchtune": ["torchtune.models.llama2"],
    "kornia": ["kornia.models.vit"],
    "x-transformers": ["x_transformers"],
}
ALWAYS = [
    "torch._dynamo", "torch.export", "benchmarks.layout_check", "elastic_ir.frontends.trace", "elastic_ir.plans.target",
    "elastic_ir.emit.module",
]  # fmt: skip


@dataclass
class Running:
    """A process at work on a network, and what it has told so far."""

    network: Network
    process: int
    start: float
    text: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Limits:
    """What a process may take."""

    seconds: float = 60
    gigabytes: float = 12  #: of addresses


def preload(chosen: Sequence[Network]) -> None:
    """Import before the fork what each process then has for nothing."""
    wanted = ["torchvision", "torchaudio", "einops", *ALWAYS]
    for library in dict.fromkeys(network.library for network in chosen):
        wanted += PRELOADED.get(library, [])
    for module in wanted:
        with contextlib.suppress(Exception):  # what fails, fails again and is recorded where it is needed
            __import__(module)


def start(network: Network, limits: Limits) -> tuple[int, Running]:
    """Begin with a network in a process of its own; the end of a pipe that it tells on, and the process."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return reader, Running(network, process, time.perf_counter())
    os.close(reader)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = int(limits.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (int(limits.seconds), int(limits.seconds) + 1))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)

    def tell(**facts: Any) -> None:
        os.write(writer, (json.dumps(facts, default=str) + "\n").encode())

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            from benchmarks.layout_check import examine

            examine(network, tell)
            tell(phase="done")
        except BaseException as error:  # whatever a network or a step raises is a result
            frames = traceback.extract_tb(error.__traceback__)[-4:]
            text = " ".join(str(error).split())[:600]
            tell(
                raised=f"{type(error).__name__}: {text}",
                at=[f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames],
            )
        os.chdir("/")
    os._exit(0)


@functools.cache
def revision() -> str:
    """The commit that is measured; empty where this is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def finish(running: Running, limits: Limits, *, late: bool) -> dict[str, Any]:
    """The facts of a network whose process has ended, or is ended because it took too long."""
    if late:
        os.killpg(running.process, signal.SIGKILL)
    _, status = os.waitpid(running.process, 0)
    network = running.network
    facts: dict[str, Any] = {"name": network.name, "library": network.library, "version": network.version}
    for line in running.text.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # a line that was cut off
            facts.update(json.loads(line))
    if late:
        facts["raised"] = f"limit: {WAIT * limits.seconds:g} s of waiting"
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        cause = f"limit: {limits.seconds:g} s" if number == signal.SIGXCPU else f"signal {number}"
        facts["raised"] = cause
    return {**facts, "seconds": round(time.perf_counter() - running.start, 1), "revision": revision()}


def examined(chosen: Sequence[Network], workers: int, limits: Limits) -> Iterator[dict[str, Any]]:
    """The facts of each network as they come; so many processes work at a time."""
    waiting = list(reversed(chosen))
    at_work: dict[int, Running] = {}
    try:
        while waiting or at_work:
            while waiting and len(at_work) < workers:
                reader, running = start(waiting.pop(), limits)
                at_work[reader] = running
            ready, _, _ = select.select(list(at_work), [], [], 1.0)
            for reader, running in list(at_work.items()):
                part = os.read(reader, 65536) if reader in ready else None
                running.text += part or b""
                late = time.perf_counter() - running.start > WAIT * limits.seconds
                if part == b"" or late:
                    os.close(reader)
                    del at_work[reader]
                    yield finish(running, limits, late=part != b"")
    finally:  # a run that is stopped leaves no process behind
        for running in at_work.values():
            finish(running, limits, late=True)


def judged(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The results in the table's order with their verdicts: the table may have learnt more since they were made."""
    judgements = []
    for network in networks():
        if network.name in results:
            facts = {**results[network.name], "kinds": network.kinds}
            word, reason = verdict(network, facts)
            judgements.append({**facts, "verdict": word, "reason": reason})
    return judgements


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Results so far, by name; the last one of a name counts."""
    if not path.exists():
        return {}
    return {facts["name"]: facts for facts in map(json.loads, path.read_text().splitlines())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine what has not been examined yet and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose name contains this")
    parser.add_argument("--library", default="", metavar="NAME", help="networks of this library")
    parser.add_argument("--table", default="", choices=["", *tables()], help="networks of this module")
    parser.add_argument(
        "--verdict", default="", help="networks with this verdict so far, once more with --fresh"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="of computing for a network")
    parser.add_argument(
        "--memory", type=float, default=Limits.gigabytes, help="GiB of addresses for a network"
    )
    parser.add_argument("--fresh", action="store_true", help="examine those chosen once more")
    parser.add_argument(
        "--summary", action="store_true", help="only judge the results anew and write the table"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept, to go on from")
    parser.add_argument("--output", type=Path, default=TABLE, help="where the table goes")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # else it writes into the home folder
    import torch

    results = read(options.results)
    chosen = list(tables()[options.table]) if options.table else networks()
    chosen = [n for n in chosen if options.only in n.name and options.library in ("", n.library)]
    if options.verdict:
        known = {facts["name"]: facts["verdict"] for facts in judged(results)}
        chosen = [network for network in chosen if known.get(network.name) == options.verdict]
    if not options.summary:
        chosen = [network for network in chosen if options.fresh or network.name not in results]
        preload(chosen)
        limits = Limits(options.seconds, options.memory)
        with options.results.open("a") as file:
            for facts in examined(chosen, options.workers, limits):
                results[facts["name"]] = facts
                file.write(json.dumps(facts, default=str) + "\n")
                file.flush()
                (judgement,) = judged({facts["name"]: facts})
                line = f"{judgement['verdict']:9}{facts['name']:36}{facts['seconds']:6.1f} s  "
                print(line + judgement["reason"][:160], flush=True)
    judgements = judged(results)
    options.output.write_text(report(judgements, torch.__version__.split("+")[0]))
    counts = Counter(judgement["verdict"] for judgement in judgements)
    print(", ".join(f"{count} {word}" for word, count in counts.most_common()))
    return int(any(counts[word] for word in ("wrong", "crash", "broken")))


if __name__ == "__main__":
    raise SystemExit(main())
