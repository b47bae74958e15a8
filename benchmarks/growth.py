"""How time grows with size, over three decades: the exponent of the power law that fits best (1 is linear).

Discovery and rewriting of CIFAR ResNets from 14 to 8,000 layers deep, reading and planning a checkpoint folder of 100
to 100,000 tensors (headers alone; the files' bytes are holes), reading an ONNX file of 200 to 200,000 nodes. Each size
is measured in turn with the others, and the fit is made for each round. Below some thousand nodes what a call costs
anyhow flattens the curve, so the exponent from the last decade alone is a figure of its own.
Run: ``python -m benchmarks.growth``, or with the names of some: ``discovery rewriting checkpoint onnx``.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.figures import PAIRS, Figures, wall

LIMIT = 1.15
PARTS = 25  #: tensors of a layer
#: A measurement of one size: how large it is, and what is timed.
Sized = tuple[int, Callable[[], object]]


def discovery(folder: Path) -> Iterator[Sized]:
    """Discovery of a traced graph, by its nodes."""
    import torch

    import elastic_ir as eir
    from elastic_ir.discovery import discover
    from elastic_ir.zoo import cifar_resnet

    for depth in (14, 80, 800, 8000):
        with torch.device("meta"):
            graph = eir.trace(cifar_resnet(depth, width=4))
        yield len(graph), lambda graph=graph: discover(graph)  # type: ignore[misc]


def rewriting(folder: Path) -> Iterator[Sized]:
    """Stretching a traced graph to twice its depth, verification included, by the nodes of the result."""
    import torch

    import elastic_ir as eir
    from elastic_ir.passes import Stretch
    from elastic_ir.zoo import cifar_resnet

    for depth in (14, 80, 800, 8000):
        with torch.device("meta"):
            graph = eir.trace(cifar_resnet(depth, width=4))
        stretch = Stretch(to_depth=2 * depth - 2)
        made = stretch.run(graph)
        yield len(made), lambda graph=graph, stretch=stretch: stretch.run(graph)  # type: ignore[misc]


def checkpoint(folder: Path) -> Iterator[Sized]:
    """Reading a folder's headers, discovery by names, stretching by half, and the whole plan of what is written."""
    import elastic_ir as eir
    from elastic_ir.checkpoints.write import plan_checkpoint

    for tensors in (100, 1_000, 10_000, 100_000):
        place = folder / f"checkpoint{tensors}"
        layers = tensors // PARTS
        _write_headers(place, layers)

        def plan(place: Path = place, layers: int = layers) -> object:
            return plan_checkpoint(
                eir.stretch(eir.load(place, headers_only=True), to_units=layers + layers // 2)
            )

        yield PARTS * layers + 2, plan


def _write_headers(folder: Path, layers: int) -> None:
    """A folder of shards with 10,000 tensors each: an embedding, layers of 25 tensors, a norm."""
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.part{part}.weight" for layer in range(layers) for part in range(PARTS)]
    folder.mkdir()
    places: dict[str, str] = {}
    for number, first in enumerate(range(0, len(names), 10_000)):
        header = {
            name: {"dtype": "F32", "shape": [8, 8], "data_offsets": [256 * at, 256 * at + 256]}
            for at, name in enumerate(names[first : first + 10_000])
        }
        text = json.dumps(header).encode()
        file = folder / f"model-{number:05}.safetensors"
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + 256 * len(header))
        places |= dict.fromkeys(header, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))


def onnx(folder: Path) -> Iterator[Sized]:
    """Reading an ONNX file, discovery included, by its nodes."""
    import onnx
    from onnx import helper, numpy_helper

    import elastic_ir as eir

    for size in (200, 2_000, 20_000, 200_000):
        nodes, weights, value = [], [], "x"
        for block in range(size // 4):
            name, scope = f"blocks.{block}.fc.weight", f"/blocks/blocks.{block}"
            weights.append(numpy_helper.from_array(np.ones((4, 4), np.float32), name))
            names = [f"{scope}/{part}" for part in ("mm", "relu", "tanh", "add")]
            nodes.append(helper.make_node("MatMul", [value, name], [names[0]], name=f"{scope}/fc/MatMul"))
            nodes.append(helper.make_node("Relu", [names[0]], [names[1]], name=f"{scope}/Relu"))
            nodes.append(helper.make_node("Tanh", [names[1]], [names[2]], name=f"{scope}/Tanh"))
            nodes.append(helper.make_node("Add", [value, names[2]], [names[3]], name=f"{scope}/Add"))
            value = names[3]
        nodes.append(helper.make_node("Identity", [value], ["y"], name="/Identity"))
        ends = [helper.make_tensor_value_info(name, 1, ["batch", 4]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
        path = folder / f"nodes{size}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        yield len(nodes), lambda path=path: eir.load(path).structure  # type: ignore[misc]


MEASURED = {each.__name__: each for each in (discovery, rewriting, checkpoint, onnx)}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> int:
    """Print the exponents; 1 where one passes the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*MEASURED, []], metavar="NAME")
    figures = Figures()
    for name in parser.parse_args().names or MEASURED:
        with tempfile.TemporaryDirectory() as folder:
            cases = list(MEASURED[name](Path(folder)))
            sizes = [size for size, _ in cases]
            rounds = []
            for _ in range(PAIRS + 1):
                gc.collect()
                rounds.append([wall(work) for _, work in cases])
        del rounds[0]  # imports, and files read from the disk
        for at, size in enumerate(sizes):
            taken = sorted(row[at] for row in rounds)
            print(
                f"  {name}, {size:,}: {taken[PAIRS // 2]:.4f} s, {taken[PAIRS // 2] / size * 1e6:.1f} us each"
            )
        what = f"growth of {name} from {sizes[0]:,} to {sizes[-1]:,}: exponent"
        figures.add(what, [exponent(sizes, row) for row in rounds], limit=LIMIT)
        what = f"growth of {name} from {sizes[-2]:,} to {sizes[-1]:,}: exponent"
        figures.add(what, [exponent(sizes[-2:], row[-2:]) for row in rounds], limit=LIMIT)
    return figures.done("torch", "onnx")


if __name__ == "__main__":
    raise SystemExit(main())
