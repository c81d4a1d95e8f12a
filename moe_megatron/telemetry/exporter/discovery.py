"""Tells Prometheus where a run can be scraped: files for its `file_sd_configs`.

A file names one target and the labels that identify the run on every series. It exists while the
run serves metrics; a run that fails or is killed leaves it behind, and the next one replaces it.
These labels are given only here, so that no series of the exporter repeats them.
"""

import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.files import replace_file

TARGETS_FILE = "prometheus_targets.json"
"""Name of the file in the run directory."""

JOB = "moe-train"
"""The `job` label of every training run."""

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

    A file that cannot be written is reported and skipped.
    """

    def __init__(self, paths: Sequence[Path], address: str, labels: dict[str, str]) -> None:
        text = json.dumps([{"targets": [address], "labels": labels}], indent=1) + "\n"
        self._text = text.encode()
        self._written: list[Path] = []
        for path in paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, [self._text])
            except OSError as error:
                logger.warning(
                    "%s cannot be written (%s): Prometheus will not find this run there",
                    path,
                    error.strerror,
                )
            else:
                self._written.append(path)

    def remove(self) -> None:
        """Delete the files, unless another process has replaced them."""
        for path in self._written:
            try:
                if path.read_bytes() == self._text:
                    path.unlink()
            except OSError as error:
                logger.debug("%s was not removed: %s", path, error)
        self._written = []
