"""A terabyte, in sparse files: its stretch is planned in seconds, and in the memory that a small model's takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.large import LAYERS, ROOMY, make_sparse

#: Ends with the peak of resident memory, in kB.
MEASURED = ROOMY.replace(
    "main()\n",
    """
try:
    main()
finally:
    with open("/proc/self/status") as status:  # what getrusage states begins with the parent's
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
""",
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_terabyte_is_planned_in_seconds_and_in_constant_memory(tmp_path: Path) -> None:
    peaks = {}
    for width in (512, 18_432):
        folder = tmp_path / str(width)
        size = make_sparse(folder, width)
        command = ["stretch", folder, "--to-units", LAYERS + 32, "-o", tmp_path / "out", "--dry-run"]
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, command)], capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - begun
        assert done.returncode == 0, done.stderr
        assert "dry run" in done.stdout
        peaks[width] = int(done.stderr.split()[-1]) / 1000
        assert seconds < 30  # a second or two on a quiet machine
    assert size > 1e12
    assert "TB" in done.stdout
    assert peaks[18_432] < 1.3 * peaks[512]
    assert peaks[18_432] < 150
    assert not (tmp_path / "out").exists()
