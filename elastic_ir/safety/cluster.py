"""A Ray cluster to hand work to. Whoever reaches one may run code on it, so a new one listens on this machine alone."""

from __future__ import annotations

import logging
import os
from typing import Any

from elastic_ir.errors import SourceError, first_line
from elastic_ir.extras import import_extra

#: Ray's own switch for machines whose firewall would ask: off, a cluster of one machine listens on loopback alone.
WIDE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def connected(address: str) -> Any:
    """Ray, connected to a cluster: ``auto`` is this machine's, ``local`` a new one, else its address.

    A ``local`` one listens on the loopback address, without a dashboard, unless the variable :data:`WIDE` is 1. Raises
    SourceError, one line: Ray is not installed, the cluster is not reached, or a local one would listen wider.
    """
    local = address == "local"
    if local:
        os.environ.setdefault(WIDE, "0")  # read when Ray is imported, here and in what it starts
    ray = import_extra("ray", "ray", "a cluster")
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"include_dashboard": False} if local else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"no Ray cluster at {address!r} ({type(error).__name__}: {first_line(error)}); start one with: "
            f"{WIDE}=0 ray start --head --include-dashboard=false, or give local"
        ) from error
    here = str(ray.util.get_node_ip_address())
    if local and os.environ[WIDE] == "0" and here not in ("127.0.0.1", "::1"):
        ray.shutdown()
        raise SourceError(
            f"Ray would listen on {here}, as it was imported before; set {WIDE}=0 before Python starts"
        )
    return ray
