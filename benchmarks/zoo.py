"""Every depth-only pair of timm, both ways: stretched or squeezed after the other, loaded strictly, compared, run.

    python -m benchmarks.zoo [--sample N] [--only NAME] [--workers 2]

Reads the list that `benchmarks.zoo_pairs` has made beforehand. For each pair and direction the source (random
weights) is made after the other model by ``like=``; a directions passes if

- the native model loads the state dict with ``strict=True``,
- every tensor equals the source's tensor that the lineage names, bit for bit,
- the emitted module and the native model with these weights give equal outputs, bit for bit.

Above 300 million parameters weights stay on the meta device: names, shapes and lineage are compared. What the list
calls impossible has to be refused. Results go to a file as they come, so a run that was stopped goes on;
`benchmarks/zoo.md` is written from it at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import elastic_ir as eir
from benchmarks.zoo_pairs import PAIRS

RESULTS = Path(__file__).with_name("zoo_results.jsonl")
TABLE = Path(__file__).with_name("zoo.md")
LARGE = 300_000_000
WAYS = {"stretch": ("shallow", "deep"), "squeeze": ("deep", "shallow")}


class Models:
    """The models of the family at work; the next family's take their place."""

    def __init__(self) -> None:
        self.made: dict[str, nn.Module] = {}
        self.graphs: dict[str, eir.Graph] = {}

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        tables: tuple[dict[str, Any], ...] = (self.made, self.graphs)
        for table in tables:
            for name in [name for name in table if name not in names]:
                del table[name]
        gc.collect()

    def module(self, name: str) -> nn.Module:
        """A model with random weights, none of which is a constant (a layer scale starts at 1e-6, a gate at 0)."""
        if name not in self.made:
            torch.manual_seed(0)
            model: nn.Module = timm.create_model(name).eval()
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.add_(0.02 * torch.randn_like(tensor))
                held = model.state_dict(keep_vars=True)
                for role, buffer in model.named_buffers():
                    if role in held and buffer.is_floating_point():
                        buffer.mul_(1 + 0.1 * torch.rand_like(buffer))
            self.made[name] = model
        return self.made[name]

    def graph(self, name: str, meta: bool) -> eir.Graph:
        """A model's graph, traced on the smallest image that it takes."""
        if name not in self.graphs:
            if meta:
                with torch.device("meta"):
                    self.graphs[name] = eir.trace(timm.create_model(name).eval())
            else:
                model = self.module(name)
                self.graphs[name] = eir.trace(model, smallest_image(model))
        return self.graphs[name]


def smallest_image(model: nn.Module) -> torch.Tensor:
    """The smallest of some images that a model runs on; its own size in the end."""
    settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm ships no types
    own: tuple[int, int, int] = settings["input_size"]
    generator = torch.Generator().manual_seed(0)
    for side in (64, 128):
        image = torch.randn(1, own[0], side, side, generator=generator)
        try:
            with torch.no_grad():
                result = model(image)
        except (RuntimeError, AssertionError, ValueError):
            continue
        if torch.isfinite(result).all():
            return image
    return torch.randn(1, *own, generator=generator)


def check(pair: dict[str, Any], way: str, models: Models) -> str:
    """Transform one way; what was found wrong, or "equal" or "names equal"."""
    source, target = (pair[end] for end in WAYS[way])
    meta = max(pair["parameters"]) > LARGE
    graph = models.graph(source, meta)
    made = getattr(eir, way)(graph, like=f"timm:{target}")
    if meta:
        with torch.device("meta"):
            native = timm.create_model(target)
        shapes = {name: tuple(tensor.shape) for name, tensor in native.state_dict().items()}
        if shapes != {name: w.shape for name, w in made.weights.items() if w.persistent}:
            return "names or shapes differ"
        old = graph.weights
        wrong = [n for n, origin in made.lineage().items() if old[origin].shape != made.weights[n].shape]
        return f"lineage is wrong at {wrong[0]}" if wrong else "names equal"
    module, state = made.to_module(), made.state_dict()
    native = models.module(target)
    kept = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    try:
        native.load_state_dict(state, strict=True)
        have = models.module(source).state_dict()
        for name, origin in made.lineage().items():
            if not torch.equal(state[name], have[origin]):
                return f"{name} is not its source {origin}"
        assert graph.origin.inputs is not None
        image = graph.origin.inputs.args[0]
        with torch.no_grad():
            ours, theirs = module.eval()(image), native(image)
        if not torch.isfinite(theirs).all():
            return "the native model's output is not finite"
        return (
            "equal" if torch.equal(ours, theirs) else f"outputs differ by {(ours - theirs).abs().max():.2g}"
        )
    finally:
        native.load_state_dict(kept)


def run_family(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All pairs of a family, both ways, in one process that keeps its models."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    models = Models()
    results = []
    for pair in pairs:
        models.keep({pair["shallow"], pair["deep"]})
        for way in WAYS:
            start = time.perf_counter()
            try:
                outcome = check(pair, way, models)
            except eir.ElasticError as error:
                outcome = f"refused: {error}"
            except Exception as error:  # whatever a model raises is a result
                outcome = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            found = {
                "shallow": pair["shallow"], "deep": pair["deep"], "way": way, "expected": pair[way],
                "outcome": outcome, "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            if pair[way] == "possible" and outcome.startswith("refused: "):
                found["lacks"] = lacking(*(pair[end] for end in WAYS[way]))
            results.append(found)
    return results


def lacking(source: str, target: str) -> str | None:
    """A weight of the target that the source has nowhere, whatever the numbers of blocks; None if there is none.

    The list takes any number in a name for a place in a series, and so a block's third norm for one like its second.
    """
    with torch.device("meta"):
        states = [timm.create_model(name).state_dict() for name in (source, target)]
    have = {(re.sub(r"\.\d+(?=\.)", ".#", name), tensor.shape) for name, tensor in states[0].items()}
    for name, tensor in states[1].items():
        if (re.sub(r"\.\d+(?=\.)", ".#", name), tensor.shape) not in have:
            return f"{name} {list(tensor.shape)}"
    return None


def possible(result: dict[str, Any]) -> bool:
    """Whether the list calls it possible, and no weight was found that shows the list to be wrong."""
    return result["expected"] == "possible" and not result.get("lacks")


def passed(result: dict[str, Any]) -> bool:
    """Whether a possible pair came out equal, or an impossible one was refused."""
    if possible(result):
        return str(result["outcome"]) in ("equal", "names equal")
    return str(result["outcome"]).startswith("refused: ")


def family_of(pair: dict[str, Any]) -> str:
    """What the names of a pair have in common, for the table."""
    return re.split(r"[_\d]", pair["shallow"])[0]


def write_table(pairs: list[dict[str, Any]], results: list[dict[str, Any]], version: str, path: Path) -> str:
    """The table by family and the totals, as Markdown; returns the totals."""
    by_family: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_family[family_of(result)].append(result)
    lines = [
        "# The zoo: every depth-only pair of timm, both ways",
        "",
        f"Written by `python -m benchmarks.zoo` with timm {version} and torch {torch.__version__.split('+')[0]}.",
        "A pair is two models whose state dicts hold the same set of (name without numbers, shape). The list of pairs,",
        "and which directions are possible, were computed beforehand by `benchmarks.zoo_pairs`. `equal`: the native",
        "model loads the transformed weights with `strict=True`, every tensor equals its source's, and the outputs of",
        "the emitted module equal the native model's bit for bit. `names`: above 300 million parameters, only names,",
        "shapes and lineage are compared.",
        "",
        "| family | models | stretch equal | names | squeeze equal | names | impossible, refused | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family, found in sorted(by_family.items()):
        models = {result[end] for result in found for end in ("shallow", "deep")}
        cells = [family, str(len(models))]
        for way in WAYS:
            mine = [r for r in found if r["way"] == way and possible(r)]
            equal = sum(r["outcome"] == "equal" for r in mine)
            names = sum(r["outcome"] == "names equal" for r in mine)
            cells += [f"{equal} of {len(mine) - names}", str(names) if names else ""]
        refused = sum(passed(r) for r in found if not possible(r))
        failed = sum(not passed(r) for r in found)
        lines.append("| " + " | ".join([*cells, str(refused or ""), str(failed or "")]) + " |")
    able = [r for r in results if possible(r)]
    others = [r for r in results if not possible(r)]
    mistaken = [r for r in others if r.get("lacks")]
    good, correct = sum(map(passed, able)), sum(map(passed, others))
    totals = (
        f"{len(results)} of {2 * len(pairs)} directions of {len(pairs)} pairs were run. Possible: {len(able)}, of "
        f"which {good} came out equal ({100 * good / max(len(able), 1):.1f} %). Impossible: "
        f"{len(others)}, of which {correct} were refused."
    )
    lines += ["", totals, ""]
    failures = [r for r in results if not passed(r)]
    if failures:
        lines += ["## What fails, and why", ""]
        lines += [_line(r, r["outcome"]) for r in failures]
        lines.append("")
    if mistaken:
        lines += ["## Listed as possible, but impossible", ""]
        lines += ["The target has a weight that no block of the source has.", ""]
        lines += [_line(r, f"{r['lacks']}. {r['outcome']}") for r in mistaken]
        lines.append("")
    others = [r for r in others if not r.get("lacks")]
    if others:
        lines += ["## Impossible pairs and their refusals", ""]
        lines += [_line(r, f"{r['expected']}. {r['outcome']}") for r in others if passed(r)]
    path.write_text("\n".join(lines).rstrip() + "\n")
    return totals


def _line(result: dict[str, Any], text: str) -> str:
    source, target = (result[end] for end in WAYS[result["way"]])
    return f"- {result['way']} {source} to {target}: {text}"


def main() -> None:
    """Run what has not been run yet and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, metavar="N", help="only every so many pairs that N remain")
    parser.add_argument("--only", metavar="TEXT", help="only pairs with a name that contains this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept, to go on from")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    listed = json.loads(PAIRS.read_text())
    pairs = listed["pairs"]
    if options.only:
        pairs = [pair for pair in pairs if options.only in pair["shallow"] or options.only in pair["deep"]]
    if options.sample:
        pairs = pairs[:: max(1, len(pairs) // options.sample)][: options.sample]
    done = []
    if options.results.exists():
        done = [json.loads(line) for line in options.results.read_text().splitlines()]
    known = {(result["shallow"], result["deep"]) for result in done}
    waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in pairs:
        if (pair["shallow"], pair["deep"]) not in known:
            waiting[pair["shallow"]].append(pair)
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, maxtasksperchild=4) as pool, options.results.open("a") as file:
        for found in pool.imap_unordered(run_family, waiting.values()):
            for result in found:
                done.append(result)
                file.write(json.dumps(result) + "\n")
                mark = "ok  " if passed(result) else "FAIL"
                print(f"{mark} {_line(result, result['outcome'])[2:]} ({result['seconds']} s)", flush=True)
            file.flush()
    wanted = {(pair["shallow"], pair["deep"]) for pair in pairs}
    results = [result for result in done if (result["shallow"], result["deep"]) in wanted]
    print(write_table(pairs, results, listed["timm"], options.table))


if __name__ == "__main__":
    main()
