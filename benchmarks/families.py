"""Every model type of transformers: a small model's folder, changed in depth by names alone, compared with the code.

    python -m benchmarks.families [--only TYPE] [--again TYPE ...] [--workers 2] [--results FILE] [--table FILE]
                                  [--summary]

Each type that transformers builds from a small configuration is written as a folder and inspected, stretched and
squeezed from it. What is expected is decided without ElasticIR: a stack is a numbered list of two layers or more that
grows when a count in the configuration is raised (`benchmarks.families_small`), and does not lie in the blocks of
another. It is right if

- it is one stage, whose unit is the shortest period of the kinds of its layers (names and shapes, or these and the
  numbers that its modules hold, as the shift of a window); first and last layers of kinds that do not occur between
  them may stand outside of it, which the table tells,
- one unit more and one unit less, together with the lists that follow the same count, load in transformers without a
  missing, unexpected or mismatched name, into a model with the lists of the one built natively, in which each layer is
  of the kind of the one that it is a copy of (classes, and the texts, truth values and Nones that its modules hold).

Where the natively built one has layers of which none is a copy of the source's, a refusal is right. A list that is no
stage is right if the entry that counts it does the same, named in place of a stage.

A tenth of the types is traced as well. Each type has a process with limits of time and memory; results go to a file as
they come, so a run that was stopped goes on; `benchmarks/families.md` is written from it at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn

import elastic_ir as eir
from benchmarks.families_small import (
    MOST_MORE,
    Count,
    Head,
    counts,
    deeper,
    numbered,
    on_meta,
    small_model,
    stored,
    value_at,
)
from benchmarks.families_table import (
    APART,
    BY_ENTRY,
    NO_COPY,
    NOT_FOUND,
    RIGHT,
    results_in,
    verdict,
    word_of,
    write_table,
)
from elastic_ir.checkpoints.oracle import comparison, process
from elastic_ir.ir.structure import Stage

RESULTS = Path(__file__).with_name("families_results.jsonl")
TABLE = Path(__file__).with_name("families.md")
SECONDS = 400  #: of the processor
PATIENCE = 900  #: seconds by the clock
MEMORY = 6 << 30
WAYS = {"stretch": 1, "squeeze": -1}


class _Here:
    """What the comparison with transformers answers, computed in this process, which has limits of its own."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def answer(self) -> Any:
        return json.loads(json.dumps(process.answer(json.loads(json.dumps(self.data)))))


@contextlib.contextmanager
def _started(module: str, data: Mapping[str, Any]) -> Iterator[_Here]:
    yield _Here(data)


def examined(kind: str, folder: Path) -> dict[str, Any]:
    """Everything about one type, as a line of the results."""
    try:
        model = small_model(kind)
    except Exception as error:  # whatever a class raises
        return {"type": kind, "not_built": _line(error)}
    config: Any = model.config
    result: dict[str, Any] = {"type": kind, "class": type(model).__name__, "stacks": []}
    try:
        found = counts(config, transformers.CONFIG_MAPPING[kind]())
        model.save_pretrained(folder / "source")  # type: ignore[operator]
        _, own = loaded(type(model), folder / "source")
    except Exception as error:
        return {"type": kind, "not_built": f"not written or read by transformers: {_line(error)}"}
    if traced_too(kind):
        result["traced"] = traced(model, folder / "source")
    cls = type(model)
    del model
    largest = max((count.default for count in found), default=0)
    every = {head for count in found for head in count.grown}
    seen: set[Head] = set()
    for count in found:
        heads = [
            h for h in count.grown if h not in seen and count.before[h] > 1 and not inside_another(h, every)
        ]
        seen.update(heads)
        if heads and 4 * count.default >= largest:
            result["stacks"] += judged(count, heads, config, cls, folder, own)
    return result


def inside_another(head: Head, heads: Iterable[Head]) -> bool:
    """Whether a list lies in the blocks of another, which repeat; it is found by name, and not a stack of its own."""
    return any(re.match(re.escape(other) + r"[0-9]+\.", head) for other in heads)


def judged(
    count: Count, heads: Sequence[Head], config: Any, cls: Any, folder: Path, own: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The stacks that a count counts, each with what is found and what came of the changes."""
    graph, why = None, ""
    stages: Sequence[Stage] = ()
    try:
        graph = eir.load(folder / "source", headers_only=True)
        if graph.origin is not None and graph.origin.learn_units is not None:
            graph.origin.learn_units(graph)  # as a change of the stage would
        stages = graph.stages
    except eir.ElasticError as error:
        why = f"refused: {error}".replace(str(folder), "")
    built = on_meta(config)
    lists = numbered(stored(built))
    known: dict[Head, str] = {}
    mine: list[Stage] = []
    for head in heads:
        stage, known[head] = expected(head, lists[head], stages, built)
        known[head] = why or known[head]
        if stage is not None and stage not in mine:
            mine.append(stage)
    own_lists = {head: lists[head] for head in heads}
    outcome = dict.fromkeys(WAYS, "-")
    for way, sign in WAYS.items() if graph is not None else ():
        made = folder / f"{count.name}-{way}"
        outcome[way] = changed(graph, mine, count, own_lists, config, cls, made, own, sign)
    if not why and NOT_FOUND in known.values():
        told = NO_COPY if NO_COPY in outcome.values() else BY_ENTRY
        tried = [one for one in outcome.values() if one != "-"]
        if not tried or not all(one.startswith((RIGHT, "wrong", "crashed")) for one in tried):
            told = NOT_FOUND
            outcome = outcome if mine else dict.fromkeys(WAYS, "-")
        known = {head: told if one == NOT_FOUND else one for head, one in known.items()}
    return [{"list": head, "count": count.name, "layers": len(lists[head]), "found": known[head], **outcome}
            for head in heads]  # fmt: skip


def expected(
    head: Head, layers: Mapping[int, Mapping[str, Any]], stages: Sequence[Stage], built: nn.Module
) -> tuple[Stage | None, str]:
    """The stage of a list, and "right" or in which way it is not what the code has."""
    over = [stage for stage in stages if any(box.series.head == head for box in stage.containers)]
    if not over:
        return None, NOT_FOUND
    if len(over) > 1:
        return over[0], f"cut into {len(over)} stages"
    stage = over[0]
    numbers = sorted(layers)
    kinds = [json.dumps(sorted(layers[number].items())) for number in numbers]
    box = next(box for box in stage.containers if box.series.head == head)
    slots = [[box.series.number(child.origin) for child in block.children] for block in stage.all_blocks]
    own = [numbers.index(next(number for number in slot if number is not None)) for slot in slots]
    rest = {kinds[at] for at in range(len(numbers)) if at not in own}
    apart = own == list(range(own[0], own[-1] + 1)) and rest.isdisjoint(kinds[at] for at in own)
    if len(stage) != len(layers) and not apart:
        return stage, f"{len(stage)} of {len(layers)} layers"
    free = slice(stage.pinned, len(own) - (stage.exit is not None))
    unit = shortest([kinds[at] for at in own][free])
    held = modules_of(head, layers, built)
    shown = [numbers_of(held[numbers[at]]) for at in own if numbers[at] in held][free]
    whole = (
        len(set(shown)) > 1 and len(shown) == stage.period
    )  # seen once: a pair of windows is a unit all the same
    if stage.period is None:
        return stage, "refused: names alone do not show how many blocks make a unit"
    if stage.period not in (unit, shortest(shown)) and not whole:
        return stage, f"unit of {stage.period}, not {unit}"
    return stage, RIGHT if len(stage) == len(layers) else f"{APART} ({len(stage)} of {len(layers)})"


def modules_of(head: Head, layers: Mapping[int, Mapping[str, Any]], built: nn.Module) -> dict[int, nn.Module]:
    """The modules of a list's layers, which the network may call otherwise: those of equal shapes, nearest by name."""
    held = dict(built.named_modules())
    wanted = {number: sorted(shapes.values()) for number, shapes in layers.items()}
    own = numbered({name: tuple(tensor.shape) for name, tensor in built.state_dict().items()})
    alike = [
        other
        for other, members in own.items()
        if {number: sorted(shapes.values()) for number, shapes in members.items()} == wanted
    ]
    best = max(alike, key=lambda other: len(_end_in_common(other, head)), default=head)
    return {number: held[f"{best}{number}"] for number in layers if f"{best}{number}" in held}


def _end_in_common(one: str, other: str) -> list[str]:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return [left for left, right in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def numbers_of(layer: nn.Module) -> str:
    """The whole numbers that a layer's modules hold, but for those that say which layer it is."""
    return repr(
        [
            (path, key, value)
            for path, module in layer.named_modules()
            for key, value in vars(module).items()
            if type(value) is int and not re.search(r"idx|index|layer|number", key)
        ]
    )


def shortest(kinds: Sequence[str]) -> int:
    """The shortest period of some layers' kinds that is seen twice, or 1."""
    count = len(kinds)
    return next(
        (n for n in range(1, count // 2 + 1) if count % n == 0 and list(kinds[n:]) == list(kinds[:-n])), 1
    )


def changed(
    graph: eir.Graph | None, stages: Sequence[Stage], count: Count, lists: Mapping[Head, Mapping[int, Any]],
    config: Any, cls: Any, folder: Path, own: Mapping[str, Any], sign: int,
) -> str:  # fmt: skip
    """What comes of one unit more or less in the stages that a count counts; of the count itself where none are."""
    native, by = None, 0
    for step in range(1, MOST_MORE + 1):
        model = deeper(config, count.place, sign * step)
        if model is None:
            continue
        new = numbered(stored(model))
        more = {stage.name: growth(stage, count, new) for stage in stages}
        if all(more.values()) and all(more[s.name] % (s.period or 1) == 0 for s in stages):
            native, by = new, step
            break
    if native is None:
        return "-" if sign < 0 else f"{count.name} is not raised by a unit"
    to = {stage.name: len(stage) + more[stage.name] for stage in stages}
    if any(one <= stage.fixed for stage, one in zip(stages, to.values(), strict=True)):
        return "-"
    copies = all(
        layer in held.values() for head, held in lists.items() for layer in native.get(head, {}).values()
    )
    entry = {count.name: value_at(config, count.place) + sign * by}
    change = eir.stretch if sign > 0 else eir.squeeze
    assert graph is not None
    try:
        try:
            made = change(graph, to_stages=to or entry)
            eir.save(made, folder)
        except eir.ElasticError as error:
            try:
                made = change(graph, to_stages=entry)  # as a refusal of several lists advises
                eir.save(made, folder)
            except eir.ElasticError:
                raise error from None
    except eir.ElasticError as error:
        return f"refused: {error}" if copies else NO_COPY
    except Exception as error:
        return f"crashed: {type(error).__name__}: {_line(error)}"
    try:
        model, report = loaded(cls, folder)
    except Exception as error:
        return f"wrong: does not load: {_line(error)}"
    if report != own:
        odd = {key: names for key, names in report.items() if names != own.get(key)}
        return f"wrong: {json.dumps(odd)[:300]}"
    have = numbered(stored(model))
    for head in count.before:
        if set(have.get(head, ())) != set(native.get(head, ())):
            return f"wrong: {len(have.get(head, ()))} layers at {head}, not {len(native.get(head, ()))} (by {by})"
    return of_another_kind(made, loaded(cls, folder.with_name("source"))[0], model) or RIGHT


def of_another_kind(made: eir.Graph, source: nn.Module, target: nn.Module) -> str:
    """Which layer is of another kind than the one that it is a copy of, by the changed graph; nothing where none is."""
    modules = {False: dict(source.named_modules()), True: dict(target.named_modules())}
    for child in (child for stage in made.stages for box in stage.containers for child in box.children):
        old, new = modules[False].get(child.origin), modules[True].get(child.path)
        if old is not None and new is not None and kind_of(old) != kind_of(new):
            return f"wrong: {child.path} is not of the kind of {child.origin}, its source"
    return ""


def kind_of(layer: nn.Module) -> list[tuple[str, str, list[tuple[str, str | bool | None]]]]:
    """The classes of a layer's modules, and the texts, truth values and Nones that they hold; not of what drops."""

    def plain(module: nn.Module) -> list[tuple[str, str | bool | None]]:
        held = [(key, value) for key, value in vars(module).items() if isinstance(value, str | bool | None)]
        # a text may hold the layer's number
        blank = [(key, re.sub(r"[0-9]+", "#", one) if isinstance(one, str) else one) for key, one in held]
        return sorted(blank, key=lambda item: item[0])

    parts = layer.named_modules()
    return [(path, type(module).__name__, plain(module)) for path, module in parts if "drop" not in path]


def growth(stage: Stage, count: Count, new: Mapping[Head, Mapping[int, Any]]) -> int:
    """By how many layers a stage's list grew."""
    head = next(box.series.head for box in stage.containers if box.series.head in count.before)
    return len(new.get(head, ())) - count.before[head]


def loaded(cls: Any, folder: Path) -> tuple[nn.Module, dict[str, list[str]]]:
    """A folder as transformers loads it, and what it reports: names that are missing, unexpected, mismatched."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    return model, {key: sorted(map(str, names)) for key, names in info.items() if names}


def traced_too(kind: str) -> bool:
    """Whether a type belongs to the tenth that is traced."""
    return zlib.crc32(kind.encode()) % 10 == 0


def traced(model: nn.Module, folder: Path) -> str:
    """The stages of a trace against those of names: "same", or both; the reason where it is not traced."""

    def told(graph: eir.Graph) -> str:
        try:
            return ", ".join(sorted(f"{len(stage)} layers" for stage in graph.stages))
        except eir.ElasticError as error:
            return str(error)

    try:
        ours, theirs = told(eir.trace(model)), told(eir.load(folder, headers_only=True))
    except eir.ElasticError as error:
        return f"not traced: {error}"
    except Exception as error:
        return f"crashed: {type(error).__name__}: {_line(error)}"
    return "same" if ours == theirs else f"trace: {ours}; names: {theirs}"


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


# -- the run ----------------------------------------------------------------------------------------------------------


def _work(kind: str, answer: multiprocessing.connection.Connection) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS))
    warnings.filterwarnings("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(comparison, "started", _started),
    ):
        try:
            answer.send(examined(kind, Path(folder)))
        except BaseException as error:
            answer.send({"type": kind, "broken": f"{type(error).__name__}: {_line(error)}"})


def results_of(kinds: Sequence[str], workers: int) -> Iterator[dict[str, Any]]:
    """The result of each type as it comes, each from a process of its own, which has the imports of this one."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(comparison, "started", _started):
        examined("bert", Path(folder))
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(kinds))
    running: dict[Any, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            kind = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(kind, theirs))
            process.start()
            theirs.close()
            running[ours] = kind, process, time.monotonic()
        ready: Any
        for ready in multiprocessing.connection.wait(list(running), timeout=1):
            kind, process, start = running.pop(ready)
            try:
                result = ready.recv()
            except EOFError:
                result = {"type": kind, "broken": "its process ended without a result"}
            process.join()
            yield {**result, "seconds": round(time.monotonic() - start, 1)}
        for ours, (kind, process, start) in list(running.items()):
            if time.monotonic() - start > PATIENCE:
                process.kill()
                process.join()
                del running[ours]
                yield {"type": kind, "broken": f"not done in {PATIENCE} seconds", "seconds": PATIENCE}


def main() -> None:
    """Run what has not been run yet and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="TEXT", help="only types whose name contains this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept, to go on from")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument(
        "--summary", action="store_true", help="run nothing, and write the table of what there is"
    )
    parser.add_argument(
        "--again",
        nargs="+",
        metavar="TYPE",
        default=(),
        help="run these types anew; the table's other rows stay",
    )
    options = parser.parse_args()
    kinds = [kind for kind in transformers.CONFIG_MAPPING if (options.only or "") in kind]
    kinds.sort(key=lambda kind: zlib.crc32(kind.encode()))  # so that what is done first is of every kind
    if options.again:
        kinds = list(options.again)
    done: list[dict[str, Any]] = []
    if options.results.exists():
        done = [json.loads(line) for line in options.results.read_text().splitlines()]
    known = {result["type"] for result in done}
    rest = [one for one in results_in(options.table) if one["type"] not in kinds] if options.again else []
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not options.summary:
        with options.results.open("a") as file:
            for result in results_of([kind for kind in kinds if kind not in known], options.workers):
                done.append(result)
                file.write(json.dumps(result) + "\n")
                file.flush()
                told = Counter(word_of(verdict(stack)) for stack in result.get("stacks", ()))
                text = result.get("not_built") or result.get("broken") or dict(told)
                print(f"{result['type']}: {text} ({result['seconds']} s)", flush=True)
    print(write_table([*rest, *(result for result in done if result["type"] in kinds)], options.table))


if __name__ == "__main__":
    main()
