"""Tells Prometheus where a run can be scraped: files for its `file_sd_configs`.

A file names one target and the labels that identify the run on every series. It exists while the
run serves metrics; a run that fails or is killed leaves it behind, and the next one replaces it.
These labels are given only here, so that no series of the exporter repeats them.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.files import replace_file
from moe_megatron.reading import read_bytes
from moe_megatron.telemetry.sinks.health import SinkHealth

TARGETS_FILE = "prometheus_targets.json"
"""Name of the file in the run directory."""

JOB = "moe-train"
"""The `job` label of every training run."""

LOOK_SECONDS = 5.0
"""Time between two looks whether the files are there."""

_MOST_BYTES = 2**20

logger = logging.getLogger(__name__)

_EVERY_INTERFACE = {"0.0.0.0", "::", ""}


def target_address(host: str, port: int) -> str:
    """The address for a scraper, HOST:PORT; "every interface" becomes this machine's name."""
    name = socket.getfqdn() if host in _EVERY_INTERFACE else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def target_labels(run_id: str, cluster: str, scheme: str = "http") -> dict[str, str]:
    """The labels of a run, including the job number if SLURM started it."""
    labels = {"job": JOB, "cluster": cluster, "run": run_id}
    if job_id := os.environ.get("SLURM_JOB_ID"):
        labels["slurm_job_id"] = job_id
    if scheme != "http":
        labels["__scheme__"] = scheme
    return labels


class TargetFiles:
    """The files of one target, written on construction and deleted by `remove`.

    A file that cannot be written, or that somebody has removed, is written by `keep`.

    Args:
        paths: The files.
        address: HOST:PORT.
        labels: Of every series of the target.
        health: Is told of files that cannot be written.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        address: str,
        labels: dict[str, str],
        health: SinkHealth | None = None,
    ) -> None:
        text = json.dumps([{"targets": [address], "labels": labels}], indent=1) + "\n"
        self._text = text.encode()
        self._health = health or SinkHealth()
        self._paths = tuple(paths)
        self._looked_at = time.monotonic()
        self._write()

    def keep(self) -> None:
        """Write again the files that are not there; looks only every few seconds.

        A file with other content is left alone: another process has replaced it.
        """
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._write(missing_only=True)

    def _write(self, *, missing_only: bool = False) -> None:
        path = Path()
        try:
            for path in self._paths:
                if missing_only and path.exists():
                    continue
                if not missing_only:  # a folder that was removed since does not come back
                    path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, [self._text])
        except OSError as error:
            reason = f"{path} cannot be written ({error.strerror}): Prometheus finds no run there"
            self._health.failed("discovery", reason)
        else:
            self._health.restored("discovery")

    def remove(self) -> None:
        """Delete the files, unless another process has replaced them."""
        for path in self._paths:
            try:
                if read_bytes(path, _MOST_BYTES) == self._text:
                    path.unlink()
            except OSError as error:
                logger.debug("%s was not removed: %s", path, error)
        self._paths = ()
