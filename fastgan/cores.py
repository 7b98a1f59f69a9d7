"""Number of CPUs and cores this process may use. Imports nothing heavy: it is asked before torch is loaded."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """Logical CPUs: the process's CPU affinity, within its cgroup quota."""
    return _within_quota(len(_affinity()))


def usable_cores() -> int:
    """Physical cores: the process's CPU affinity without hyper-thread siblings, within its cgroup quota."""
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return _within_quota(len({_read(siblings.format(cpu)) or cpu for cpu in _affinity()}))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _within_quota(count: int) -> int:
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # "max 100000" or "<microseconds> <period>"
    if len(quota) == 2 and quota[0].isdigit():
        count = min(count, int(quota[0]) // int(quota[1]))
    return max(1, count)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
