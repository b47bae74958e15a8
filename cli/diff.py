"""``diff``: two networks side by side, from their structure down to the bytes of each tensor."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from elastic_ir.cli import tables
from elastic_ir.cli.app import COMMANDS
from elastic_ir.cli.options import DEBUG_OPTION, SOURCE, Reading, gathered

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

Tensors count as equal if their bytes are, after masks have been applied. The exit code is 0 whether the networks
differ or not; programs read "same" in the output of --json.
"""

TAKEN = ("mask_from_zeros", "input_shape", "unit", "trust", "key", "pretrained")  #: options of reading
SHOWN = 10  #: names of a kind that the text form lists; --json has all


@click.command("diff", short_help=COMMANDS["diff"], epilog=EPILOG)
@click.argument("a", type=SOURCE)
@click.argument("b", type=SOURCE)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object, for programs.")
@click.option("--key-b", metavar="NAME", help="As --key, which is about A, for B.")
@gathered("reading", Reading, DEBUG_OPTION, only=TAKEN)
def diff(a: str, b: str, as_json: bool, key_b: str | None, reading: Reading) -> None:
    """Compare the networks A and B: stages, depth, parameters and sparsity, then names, shapes, values and masks."""
    left, right = reading.load(a), dataclasses.replace(reading, key=key_b).load(b)
    with tables.status("comparing tensors"):
        found = compare(left, right)
    if as_json:
        found["a"], found["b"] = {"source": a, **found["a"]}, {"source": b, **found["b"]}
        tables.say_json(found)
        return
    _show(found, a, b)


def compare(left: Graph, right: Graph) -> dict[str, Any]:
    """All differences as plain data; tensors are read one pair at a time."""
    ours = {name: weight for name, weight in left.weights.items() if weight.persistent}
    theirs = {name: weight for name, weight in right.weights.items() if weight.persistent}
    common = [name for name in ours if name in theirs]
    reshaped = [name for name in common if _form(ours[name]) != _form(theirs[name])]
    alike = [name for name in common if _form(ours[name]) == _form(theirs[name])]
    found: dict[str, Any] = {
        "a": _summary(left),
        "b": _summary(right),
        "only_in_a": [name for name in ours if name not in theirs],
        "only_in_b": [name for name in theirs if name not in ours],
        "shapes_differ": [
            {"name": name, "a": _form(ours[name]), "b": _form(theirs[name])} for name in reshaped
        ],
        "tensors_differ": [name for name in alike if _digest(ours[name]) != _digest(theirs[name])],
        "masks_differ": [name for name in alike if _bits(ours[name]) != _bits(theirs[name])],
        "equal_tensors": 0,
    }
    found["equal_tensors"] = len(alike) - len(found["tensors_differ"])
    kinds = ("only_in_a", "only_in_b", "shapes_differ", "tensors_differ", "masks_differ")
    found["same"] = not any(found[kind] for kind in kinds)
    return found


def _summary(graph: Graph) -> dict[str, Any]:
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


def _digest(weight: Weight) -> bytes:
    """Of the emitted bytes: the two sides may hand them out in chunks of different sizes."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for chunk in weight.storage.emitted().chunks():
        digest.update(chunk)
    return digest.digest()


def _bits(weight: Weight) -> bytes | None:
    return weight.mask.bits if weight.mask is not None else None


def _show(found: dict[str, Any], a: str, b: str) -> None:
    left, right = found["a"], found["b"]
    table = tables.Table(("", a, b))
    table.rows.append(("depth", tables.number(left["depth"]), tables.number(right["depth"])))
    table.rows.append(("parameters", tables.number(left["parameters"]), tables.number(right["parameters"])))
    table.rows.append(("sparsity", tables.percent(left["sparsity"]), tables.percent(right["sparsity"])))
    for name in dict.fromkeys((*left["stages"], *right["stages"])):
        blocks = [tables.number(side["stages"].get(name), tables.ABSENT) for side in (left, right)]
        table.rows.append((f"stage {name}", *blocks))
    tables.show_table(table)
    tables.say()
    if found["same"]:
        tables.say(f"the same {found['equal_tensors']:,} tensors, byte for byte")
        return
    _show_names(f"only in {a}", found["only_in_a"])
    _show_names(f"only in {b}", found["only_in_b"])
    reshaped = [f"{item['name']}  {_type(item['a'])} | {_type(item['b'])}" for item in found["shapes_differ"]]
    _show_names("of another shape or type", reshaped)
    _show_names("of other values", found["tensors_differ"])
    _show_names("with another mask", found["masks_differ"])
    tables.say(f"{found['equal_tensors']:,} tensors are equal")


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
