"""``python -m elastic_ir`` does what ``elastic-ir`` does, where the program itself is not on the path."""

from __future__ import annotations

from elastic_ir.cli import main

if __name__ == "__main__":
    main()
