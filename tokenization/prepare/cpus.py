"""The number of CPUs that this process may use, which a shared machine limits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def allowed_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may run on, within the quota of its control groups."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """Yield the whole CPUs that each control group of this process grants (cgroup v2, then v1)."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        below = Path(path.lstrip("/"))
        # A container sees its own group at the root of the mount, whatever its path is.
        for folder in dict.fromkeys(
            [mounted / below, *(mounted / above for above in below.parents), mounted]
        ):
            quota = _quota(folder)
            if quota is not None:
                yield quota


def _quota(group: Path) -> int | None:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        return None if quota in ("max", "-1") else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None
