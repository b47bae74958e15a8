"""What every test needs before it starts: a torchvision that imports, no network, one thread, frozen graphs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SHIM = str(Path(__file__).parent / "torchvision_cpu")

# Set before torch is imported, and inherited by subprocesses and by the workers that run tests side by side.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SHIM, os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of tests start commands, each of which compiled
sys.path.insert(0, SHIM)

from collections import Counter  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import torchvision_cpu  # noqa: E402, F401  torchvision's own operators do not load beside a CPU-only torch
from hypothesis import settings  # noqa: E402

from tests import frozen_graphs  # noqa: E402

torch.set_num_threads(1)  # several workers share few cores

# Tracing a network takes long enough, and unevenly enough, for hypothesis's deadline of 200 ms to mean nothing.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

frozen_graphs.freeze_built_graphs()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test's many cases the first N are everyday ones where it says ``everyday(N)``, and the others are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("everyday")
        if marker is None:
            continue
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if seen[test] > marker.args[0]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def only_the_rewriter_edits() -> Iterator[None]:
    """A test fails where something else has edited a built graph, even if the error was caught on the way."""
    before = len(frozen_graphs.REFUSED)
    yield
    refused = frozen_graphs.REFUSED[before:]
    del frozen_graphs.REFUSED[before:]
    assert not refused, refused[0]
