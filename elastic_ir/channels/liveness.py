"""Which channels a network needs: from the output back through every weight that is not masked.

A channel is live if a layer with a live output reads it with a weight that is not masked, unless it is a constant
that the layer's bias can take over. What is not live can go, with all that only it feeds. Cycles through residual
streams go as well, since nothing is live that does not lead to the output.
"""

from __future__ import annotations

import numpy as np

from elastic_ir.channels.atoms import Bools, Channels, Integers, LayerChannels
from elastic_ir.channels.flow import Flow


class Liveness:
    """The live channels of a flow: no fewer than the function needs, and as many as every layer can be built of."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._live: Bools = np.zeros(len(flow.roots), np.bool_)
        self._settle()

    def is_live(self, channels: Channels) -> Bools:
        """Which of a value's channels stay."""
        return self._live[self.flow.roots[channels.atoms]]

    def _enliven(self, atoms: Integers) -> None:
        self._live[self.flow.roots[atoms]] = True

    def _settle(self) -> None:
        self._enliven(np.array(self.flow.pinned, np.int64))
        while True:
            before = -1
            while before != (now := int(self._live.sum())):
                before = now
                for layer in reversed(self.flow.layers):
                    rows = self.is_live(layer.outside)
                    if rows.any():
                        self._enliven(layer.inside.atoms[layer.needed(rows)])
            for layer in self.flow.layers:
                self._balance(layer)
            if now == int(self._live.sum()):
                return

    def _balance(self, layer: LayerChannels) -> None:
        """Keep what a layer cannot do without: one channel, and in every group as many as in the others."""
        sides = [layer.inside, layer.outside]
        flags = [layer.grid(self.is_live(side)) for side in sides]
        kept: Bools = np.any(flags[0], axis=1) | np.any(flags[1], axis=1)
        if not kept.any():
            kept[0] = True
        for side, alive in zip(sides, flags, strict=True):
            counts = alive.sum(1)
            wanted = max(int(counts[kept].max()), 1)
            atoms = side.atoms.reshape(layer.groups, -1)
            for group in np.flatnonzero(kept & (counts < wanted)):
                dead = atoms[group][~alive[group]]
                self._enliven(dead[: wanted - counts[group]])
