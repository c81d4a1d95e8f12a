"""Rules of every test run.

A skipped test proves nothing, so in CI a skip is a failure: CI installs what the tests need. Tests
marked `gpu` are not skipped but deselected on a machine without a CUDA device, and the output says
how many. What depends on a package or binary must skip inside the test or a fixture, so that the
mark is known by then.
"""

import functools
import os
import sys
from pathlib import Path

# Before any torch import, and inherited by workers and subprocesses: each worker is one of several
# on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Containers often ask Python to write no bytecode. The tests start many interpreters, and without
# it each would compile torch and Megatron anew, which takes longer than all else that importing
# them does. So it is written, not beside the sources but into the environment's folder.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", f"{sys.prefix}/bytecode")
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"]
    sys.dont_write_bytecode = False

import pytest

_DESELECTED = pytest.StashKey[int]()


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in {"", "0", "false", "no"}


@functools.cache
def _has_cuda() -> bool:
    # torch takes seconds to import: not without a driver.
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config, items):
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not _has_cuda():
        items[:] = [item for item in items if item not in gpu]
        config.hook.pytest_deselected(items=gpu)
        config.stash[_DESELECTED] = len(gpu)


def _refuse_skip(report) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = (
        f"{report.nodeid}: skipped in CI ({reason}). CI must prove what it runs: install what is "
        "missing there, or mark the test `gpu` if a CUDA device is what it needs."
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and _in_ci() and not item.get_closest_marker("gpu"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and _in_ci():
        _refuse_skip(report)
    return report


# Workers of pytest-xdist deselect on their own: the count travels to the process that prints.


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["gpu_deselected"] = session.config.stash.get(_DESELECTED, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    count = getattr(node, "workeroutput", {}).get("gpu_deselected", 0)
    node.config.stash[_DESELECTED] = max(count, node.config.stash.get(_DESELECTED, 0))


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(_DESELECTED, 0):
        terminalreporter.write_line(f"{count} gpu tests deselected: no CUDA device on this machine")
