"""Training: finding tickets, the baselines that they are compared with, and studies that do both (extra ``[train]``).

Everything here is imported on demand: the rest of the package neither needs nor loads it.
"""

from __future__ import annotations
