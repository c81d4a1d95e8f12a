"""Rules of every test run.

A skipped test proves nothing, so in CI a skip is a failure: CI installs what the tests need. Tests
marked `gpu` are not skipped but deselected on a machine without a CUDA device, and the output says
how many. Tests marked `deep` are deselected unless `-m` names the mark. What depends on a package
or binary must skip inside the test or a fixture, so that the mark is known by then. What tests that
passed wrote is deleted as soon as nothing needs it.
"""

import functools
import gc
import os
import shutil
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
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's mood.
settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any_machine")

_DESELECTED = pytest.StashKey[dict[str, int]]()
_REASONS = {
    "gpu": "no CUDA device on this machine",
    "deep": "make test-deep runs them",
    "libraries": "pytest -m libraries runs them, where environments of libraries are built",
}


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in {"", "0", "false", "no"}


@functools.cache
def _has_cuda() -> bool:
    # torch takes seconds to import: not without a driver.
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


def _left_out(config, mark) -> bool:
    if mark in ("deep", "libraries"):
        return mark not in config.option.markexpr
    return not _has_cuda()


def pytest_collection(session):
    """Collect no garbage while test files are imported, which is most of the collection."""
    gc.disable()


def pytest_collection_finish(session):
    """What has been imported stays: garbage collections need not visit it in every test."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    gc.unfreeze()  # some extension modules say aloud what is not collected at the end


def pytest_collection_modifyitems(config, items):
    config.stash[_DESELECTED] = counts = {}
    for mark in _REASONS:
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and _left_out(config, mark):
            items[:] = [item for item in items if not item.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=marked)
            counts[mark] = len(marked)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Delete a module's own folders when its last test has run, unless one failed.

    pytest deletes those of a test (`tmp_path_retention_policy`), but not what a fixture of a module
    took from `tmp_path_factory`: checkpoints of a model of 373 M parameters are several GB.
    """
    if fixturedef.scope not in {"module", "class"} or "tmp_path_factory" not in fixturedef.argnames:
        return (yield)
    session, folders = request.session, set()
    failed = session.testsfailed

    def delete() -> None:
        if session.testsfailed == failed:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    # What is added first runs last: after the fixture has stopped what writes into its folders.
    fixturedef.addfinalizer(delete)
    base = request.getfixturevalue("tmp_path_factory").getbasetemp()
    before = set(base.iterdir())
    try:
        return (yield)
    finally:
        folders |= set(base.iterdir()) - before


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
        session.config.workeroutput["left_out"] = session.config.stash.get(_DESELECTED, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    counts = node.config.stash.setdefault(_DESELECTED, {})
    for mark, count in getattr(node, "workeroutput", {}).get("left_out", {}).items():
        counts[mark] = max(count, counts.get(mark, 0))


def pytest_terminal_summary(terminalreporter, config):
    for mark, count in config.stash.get(_DESELECTED, {}).items():
        terminalreporter.write_line(f"{count} {mark} tests deselected: {_REASONS[mark]}")
