"""What every test needs before it starts: a torchvision that imports, no network, and one thread per worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SHIM = str(Path(__file__).parent / "torchvision_cpu")

# Set before torch is imported, and inherited by subprocesses and by the workers that run tests side by side.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SHIM, os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, SHIM)

import torch  # noqa: E402
import torchvision_cpu  # noqa: E402, F401  torchvision's own operators do not load beside a CPU-only torch
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)  # several workers share few cores

# Tracing a network takes long enough, and unevenly enough, for hypothesis's deadline of 200 ms to mean nothing.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
