"""The depth-only pairs of timm, found from names and shapes alone, before anything is transformed.

    python -m benchmarks.zoo_pairs [-o benchmarks/zoo_pairs.json]

Every model of timm is built on the meta device. Two models are of one family if their state dicts hold the same set
of (name with its numbers left out, shape); they are a pair if they hold them different numbers of times. A pair is
*possible* in one direction if all that each numbered child of the target holds, weights by shape and layers by class
and configuration (but for rates), one of the source's children of the same series holds too, or can be made to hold
by a change of the depth inside of it, and if the two models agree everywhere else. The list is committed before the
transformations are run; `benchmarks.zoo` reads it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

PAIRS = Path(__file__).with_name("zoo_pairs.json")
_NUMBER = re.compile(r"^(.*?)(\d+)$")
_FLOAT = re.compile(r"\d*\.\d+(e[+-]?\d+)?")
#: Their rates differ from block to block, and a rate of 0 leaves them out.
_RATES = {"Identity", "DropPath", "Dropout"}


@dataclass
class Tree:
    """A module tree by names: what each path holds itself, and its children."""

    own: set[str] = field(default_factory=set)
    children: dict[str, Tree] = field(default_factory=dict)

    def at(self, path: str) -> Tree:
        """The node of a dotted path, made if it is not there."""
        node = self
        for name in path.split(".") if path else ():
            node = node.children.setdefault(name, Tree())
        return node

    def form(self) -> frozenset[str]:
        """All that lies in it, by relative path: what makes two blocks alike."""
        found = set(self.own)
        for name, child in self.children.items():
            found |= {f"{name}.{item}" for item in child.form()}
        return frozenset(found)


@dataclass
class Model:
    """What is compared of a model."""

    name: str
    parameters: int
    shapes: dict[str, tuple[int, ...]]
    tree: Tree

    @property
    def family(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """The set of its shapes by name, the numbers in names left out."""
        return frozenset((re.sub(r"\d+", "#", name), shape) for name, shape in self.shapes.items())

    @property
    def exact(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        return frozenset(self.shapes.items())


def read(name: str) -> Model:
    """Build a model on the meta device and keep its names, shapes and layers."""
    with torch.device("meta"):
        module: nn.Module = timm.create_model(name)
    tree = Tree()
    for path, part in module.named_modules():
        if type(part).__name__ not in _RATES and not any(True for _ in part.children()):
            tree.at(path).own.add(f"{type(part).__name__}({_FLOAT.sub('~', part.extra_repr())})")
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key, shape in shapes.items():
        owner, _, role = key.rpartition(".")
        tree.at(owner).own.add(f"{role}{list(shape)}")
    return Model(name, sum(p.numel() for p in module.parameters()), shapes, tree)


def obstacles(source: Tree, target: Tree, path: str = "", lists: bool = False) -> Iterator[str]:
    """Why the target cannot be made of the source's children; nothing where it can.

    With ``lists`` only the lengths of lists may differ, and not how many attributes are numbered (``norm3``).
    """
    if source.own != target.own:
        differing = sorted(source.own ^ target.own)[:2]
        yield f"{path or 'the root'} differs: {', '.join(differing)}"
    mine, theirs = _series(source), _series(target)
    if mine.keys() != theirs.keys():
        yield f"{path or 'the root'} has other children: {', '.join(sorted(mine.keys() ^ theirs.keys())[:3])}"
        return
    for prefix, names in theirs.items():
        inner = f"{path}.{prefix}" if path else prefix
        if names == mine[prefix]:  # the same numbers: the depth may differ further in
            for name in names:
                yield from obstacles(
                    source.children[name], target.children[name], f"{path}.{name}".lstrip("."), lists
                )
            continue
        if lists and prefix != "#":
            yield f"{inner} are not as many"
        held = [source.children[name] for name in mine[prefix]]
        for name in names:
            if not any(_holds(child, target.children[name]) for child in held):
                yield f"{inner} has no child in the source that holds what the target's {name} does"
                break


def _holds(source: Tree, target: Tree) -> bool:
    """Whether a child holds all that another does, or becomes such a one by a change of depth inside of it."""
    return target.form() <= source.form() or next(obstacles(source, target, lists=True), None) is None


def _series(tree: Tree) -> dict[str, list[str]]:
    """Children by prefix, a number at the end being a place in a series; a name without one stands alone."""
    found: dict[str, list[str]] = {}
    for name, child in tree.children.items():
        if child.form():
            match = _NUMBER.match(name)
            found.setdefault(match[1] + "#" if match else name, []).append(name)
    return found


def pair_up(models: list[Model]) -> list[dict[str, Any]]:
    """All pairs of all families; where several names share one state dict, the pair that is most alike."""
    families: dict[Any, dict[Any, list[Model]]] = defaultdict(lambda: defaultdict(list))
    for model in models:
        families[model.family][model.exact].append(model)
    pairs = []
    for family in families.values():
        groups = sorted(family.values(), key=lambda group: (len(group[0].shapes), group[0].parameters))
        for less, more in itertools.combinations(groups, 2):
            pairs.append(min((_pair(a, b) for a in less for b in more), key=_unlikeness))
    return pairs


def _pair(less: Model, more: Model) -> dict[str, Any]:
    return {
        "shallow": less.name,
        "deep": more.name,
        "parameters": [less.parameters, more.parameters],
        "stretch": next(obstacles(less.tree, more.tree), "possible"),
        "squeeze": next(obstacles(more.tree, less.tree), "possible"),
    }


def _unlikeness(pair: dict[str, Any]) -> tuple[int, int, str]:
    """Least for the pair that is possible both ways and whose names have most in common."""
    impossible = sum(pair[way] != "possible" for way in ("stretch", "squeeze"))
    left, right = (Counter(re.split(r"[_\d]+", pair[end])) for end in ("shallow", "deep"))
    return impossible, sum(((left - right) + (right - left)).values()), pair["shallow"] + pair["deep"]


def main() -> None:
    """Find the pairs and write the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=PAIRS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = [read(name) for name in timm.list_models()]
    pairs = pair_up(models)
    body = ",\n".join(json.dumps(pair) for pair in pairs)
    options.output.write_text(
        f'{{"timm": "{timm.__version__}", "models": {len(models)}, "pairs": [\n{body}\n]}}\n'
    )
    for way in ("stretch", "squeeze"):
        possible = sum(pair[way] == "possible" for pair in pairs)
        print(f"{way}: {possible} of {len(pairs)} pairs are possible")


if __name__ == "__main__":
    main()
