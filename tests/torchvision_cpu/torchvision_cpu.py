"""Let the PyPI build of torchvision import beside a CPU-only torch.

Its compiled operators are linked to CUDA libraries and fail to load, and the import then stops at operators that
nobody declared. Declaring the two names is enough for every model in torchvision, timm and transformers; the
operators themselves stay unusable. Import this module before any of them (a test's conftest.py is the place).
"""

from __future__ import annotations

from contextlib import suppress

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # kept: it owns the declarations
for _name in ("nms", "qnms"):
    with suppress(RuntimeError):  # a torchvision with working operators has declared them already
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
