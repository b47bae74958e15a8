"""``diff``: two networks side by side, from their structure down to the bytes of each tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import tables
from elastic_ir.cli.app import COMMANDS, JSON, given, run_flags
from elastic_ir.cli.kinds import fetch, is_remote
from elastic_ir.cli.options import SOURCE, Reading, gathered

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph
    from elastic_ir.tensors.weights import Weight

EPILOG = """\
\b
Examples:
  elastic-ir diff model.pt model-depth56.pt
  elastic-ir diff before.safetensors after.safetensors --json
  elastic-ir diff model.pt model-depth56.pt | head -9
  elastic-ir diff checkpoint.pt checkpoint.pt --key model --key-b ema
  elastic-ir diff llama llama-32 --headers

Tensors count as equal if their bytes are, after masks have been applied. Of checkpoint folders no network is built,
unless --input-shape asks for it. --headers compares names, shapes and types alone, however large the files are. If one
of the two has a record of what it was made from, its layers are listed by it. The exit code is 0 whether the networks
differ or not; programs read "same" in the output of --json, which is null where only headers were compared and agree.
"""

TAKEN = (
    "mask_from_zeros",
    "input_shape",
    "unit",
    "trust",
    "key",
    "pretrained",
    "component",
    "variant",
)  #: options of reading
SHOWN = 10  #: names of a kind that the text form lists; --json has all


@click.command("diff", short_help=COMMANDS["diff"], epilog=EPILOG)
@click.argument("a", type=SOURCE)
@click.argument("b", type=SOURCE)
@click.option("--headers", is_flag=True, help="Compare names, shapes and types alone, and read no tensor.")
@click.option("--key-b", metavar="NAME", help="As --key, which is about A, for B.")
@gathered("reading", Reading, run_flags, only=TAKEN)
def diff(a: str, b: str, headers: bool, key_b: str | None, reading: Reading) -> None:
    """Compare the networks A and B: stages, depth, parameters and sparsity, then names, shapes, values and masks."""
    if not headers:
        for source in (a, b):
            fetch(source, reading.variant, reading.component)
    left = reading.load(a, headers_only=headers or reading.by_headers(a))
    other = dataclasses.replace(reading, key=key_b)
    right = other.load(b, headers_only=headers or other.by_headers(b))
    with tables.status("comparing tensors"):
        found = compare(left, right, values=not headers)
    found["lineage"] = lineage_between((left, a), (right, b))
    if given(JSON):
        found["a"], found["b"] = {"source": a, **found["a"]}, {"source": b, **found["b"]}
        tables.say_json(found)
        return
    _show(found, a, b)


def compare(left: Graph, right: Graph, values: bool = True) -> dict[str, Any]:
    """All differences as plain data; tensors are read one pair at a time, or not at all without ``values``."""
    from elastic_ir.tensors.lazy import same_bytes

    ours = {name: weight for name, weight in left.weights.items() if weight.persistent}
    theirs = {name: weight for name, weight in right.weights.items() if weight.persistent}
    common = [name for name in ours if name in theirs]
    reshaped = [name for name in common if _form(ours[name]) != _form(theirs[name])]
    alike = [name for name in common if _form(ours[name]) == _form(theirs[name])]
    found: dict[str, Any] = {
        "a": summary(left),
        "b": summary(right),
        "only_in_a": [name for name in ours if name not in theirs],
        "only_in_b": [name for name in theirs if name not in ours],
        "shapes_differ": [
            {"name": name, "a": _form(ours[name]), "b": _form(theirs[name])} for name in reshaped
        ],
        "tensors_differ": [
            name
            for name in (alike if values else ())
            if not same_bytes(ours[name].storage.emitted(), theirs[name].storage.emitted())
        ],
        "masks_differ": [name for name in alike if _bits(ours[name]) != _bits(theirs[name])],
        "values_compared": values,
        "equal_tensors": None,
    }
    kinds = ("only_in_a", "only_in_b", "shapes_differ", "tensors_differ", "masks_differ")
    found["same"] = not any(found[kind] for kind in kinds)
    if values:
        found["equal_tensors"] = len(alike) - len(found["tensors_differ"])
    elif found["same"]:
        found["same"] = None  # nobody has looked at the values
    found["alike"] = len(alike)
    return found


def lineage_between(*sides: tuple[Graph, str]) -> list[dict[str, Any]]:
    """For each side that has a record what its last change made of its source, and whether that is the other side."""
    from elastic_ir.checkpoints.undo import runs_of, steps_of_graph

    found = []
    for place, (graph, source) in enumerate(sides):
        steps = steps_of_graph(graph)
        if not steps:
            continue
        other, first = sides[1 - place][1], steps[-1].sources[0]
        found.append(
            {
                "of": "ab"[place],
                "source": first,
                "is_other": source != other and first in _names(other),
                "stages": runs_of(graph, steps[-1]),
            }
        )
    return found


def _names(source: str) -> set[str]:
    """What a record may call a source: a file's or folder's name, or its URL."""
    if not is_remote(source):
        return {Path(source).resolve().name}
    from elastic_ir.formats.remote import path_of, without_credentials

    return {path_of(source).name, without_credentials(source)}


def summary(graph: Graph) -> dict[str, Any]:
    """A network in a few figures, as plain data."""
    structure, sentence = tables.structure_of(graph)
    return {
        "name": graph.name,
        "depth": structure.depth if structure is not None else None,
        "parameters": graph.parameter_count(),
        "sparsity": graph.sparsity(),
        "stages": {stage.name: len(stage) for stage in structure.stages} if structure is not None else {},
        "note": structure.note if structure is not None else sentence,
    }


def _form(weight: Weight) -> dict[str, Any]:
    return {"shape": list(weight.shape), "dtype": weight.dtype}


def _bits(weight: Weight) -> bytes | None:
    return weight.mask.bits if weight.mask is not None else None


def _depth(side: dict[str, Any]) -> str:
    """A side's depth; where names alone do not show it, how many layers its stages have."""
    if side["depth"] is not None or not side["stages"]:
        return tables.number(side["depth"])
    return " + ".join(map(str, side["stages"].values())) + " layers"


def _show(found: dict[str, Any], a: str, b: str) -> None:
    left, right = found["a"], found["b"]
    table = tables.Table(("", a, b))
    table.rows.append(("depth", _depth(left), _depth(right)))
    table.rows.append(("parameters", tables.number(left["parameters"]), tables.number(right["parameters"])))
    table.rows.append(("sparsity", tables.percent(left["sparsity"]), tables.percent(right["sparsity"])))
    for name in dict.fromkeys((*left["stages"], *right["stages"])):
        blocks = [tables.number(side["stages"].get(name), tables.ABSENT) for side in (left, right)]
        table.rows.append((f"stage {name}", *blocks))
    tables.show_table(table)
    tables.say()
    for made in found["lineage"]:
        _show_lineage(made, a, b)
    if found["same"]:
        tables.say(f"the same {found['equal_tensors']:,} tensors, byte for byte")
        return
    _show_names(f"only in {a}", found["only_in_a"])
    _show_names(f"only in {b}", found["only_in_b"])
    reshaped = [f"{item['name']}  {_type(item['a'])} | {_type(item['b'])}" for item in found["shapes_differ"]]
    _show_names("of another shape or type", reshaped)
    _show_names("of other values", found["tensors_differ"])
    _show_names("with another mask", found["masks_differ"])
    if found["values_compared"]:
        tables.say(f"{found['equal_tensors']:,} tensors are equal")
    else:
        tables.say(f"{found['alike']:,} tensors have one name, shape and type; no values were compared")


def _show_lineage(made: dict[str, Any], a: str, b: str) -> None:
    """By the record: ``llama-32: model.layers 16-31 are 6-21 of llama``; layers that stayed are not named."""
    own, other = (a, b) if made["of"] == "a" else (b, a)
    source = other if made["is_other"] else made["source"]
    for stage, runs in made["stages"].items():
        moved = [f"{now} {'are' if '-' in now else 'is'} {before}" for now, before in runs if now != before]
        if moved:
            tables.say(f"{own}: {stage} {', '.join(moved)} of {source}")


def _type(form: dict[str, Any]) -> str:
    return f"{form['dtype']}{form['shape']}"


def _show_names(title: str, names: list[str]) -> None:
    if not names:
        return
    tables.say(f"{len(names):,} {title}:")
    for name in names[:SHOWN]:
        tables.say(f"  {name}")
    if len(names) > SHOWN:
        tables.say(f"  and {len(names) - SHOWN:,} more (--json lists all)")
