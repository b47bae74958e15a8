"""Apply torchvision_cpu in every Python process that has this folder on PYTHONPATH, at its first import of torchvision.

Costs nothing at start-up: torch is imported only when torchvision is. For subprocesses of tests (command line,
workers).
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torchvision_cpu  # noqa: F401  declares the missing operators
        return None  # the ordinary finders go on


sys.meta_path.insert(0, _BeforeTorchvision())
