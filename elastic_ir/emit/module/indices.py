"""What depends on a block's number and is not a weight: layer indices.

It is recognised by evidence in the source network, never by a class: an integer that equals the block's number in every
block is an index.
"""

from __future__ import annotations

import re

from torch import nn

from elastic_ir.ir.structure import Container

_INDEX = re.compile(r"(idx|index|layer|block|_id$|^i$)")


def renumber_indices(source: nn.Module, place: nn.Module, container: Container) -> set[str]:
    """Set integers that number the blocks (an attention's ``layer_idx``) to the target's numbers; their names."""
    done: set[str] = set()
    numbered = [
        {
            (path, name): value
            for path, module in child.named_modules()
            for name, value in vars(module).items()
            if type(value) is int and not name.startswith("_")
        }
        for child in source.children()
    ]
    if len(numbered) < 2:
        return done
    for key, first in numbered[0].items():
        values = [table.get(key) for table in numbered]
        evident = values == list(range(first, first + len(values)))
        if evident and (len(values) > 2 or _INDEX.search(key[1])):
            for number, child in enumerate(place.children()):
                setattr(child.get_submodule(key[0]), key[1], first + number)
                done.add(key[1])
    return done
