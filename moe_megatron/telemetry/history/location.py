"""Where a history is stored: translates a folder or a bucket prefix to TensorStore's terms.

Nothing is opened or created here. TensorStore finds credentials itself: for S3 in the environment,
the profile or the machine's role, for Google Cloud in the application default credentials.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

HISTORY_FOLDER = "history"
"""Folder of the history in a run folder, unless another place is configured."""

_BUCKETS = {"s3": "s3", "gs": "gcs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A place that can hold a history.

    Attributes:
        text: its name in messages.
        kvstore: TensorStore's specification of its key-value store; the path ends in "/".
        folder: the local folder; None for a bucket.
    """

    text: str
    kvstore: dict[str, Any]
    folder: Path | None


def parse_location(address: str | Path) -> Location:
    """Parses a path, file:///path, s3://bucket/prefix or gs://bucket/prefix.

    AWS_ENDPOINT_URL selects an S3-compatible server, as for Amazon's own tools.

    Raises:
        ConfigError: the scheme is unknown, or the bucket is missing.
    """
    text = str(address)
    if "://" not in text:
        return _local(Path(address))
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return _local(Path(parts.path))
    if parts.scheme not in _BUCKETS or not parts.netloc:
        raise ConfigError(
            f"the history cannot be kept at '{text}'; give a folder, file:///FOLDER, "
            "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX."
        )
    prefix = parts.path.strip("/")
    kvstore = {
        "driver": _BUCKETS[parts.scheme],
        "bucket": parts.netloc,
        "path": f"{prefix}/" if prefix else "",
    }
    if parts.scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        kvstore["endpoint"] = endpoint
        kvstore["aws_region"] = os.environ.get("AWS_REGION", "us-east-1")
    return Location(text=text.rstrip("/"), kvstore=kvstore, folder=None)


def _local(path: Path) -> Location:
    folder = user_path(path).absolute()
    kvstore = {
        "driver": "file",
        "path": f"{folder}/",
        # By default TensorStore writes to NAME.__lock and renames it. A killed writer leaves that
        # file behind; the next one overwrites only its beginning and renames it, old tail included
        # (0.1.86), which is a damaged chunk. Without locks each write has its own temporary file.
        "file_io_locking": {"mode": "none"},
    }
    return Location(text=str(path), kvstore=kvstore, folder=folder)


def history_address(configured: str | None, run_dir: Path | None) -> str | Path | None:
    """The address of a run's history: under the configured address, or in the run's own folder.

    Args:
        configured: folder or bucket that collects the histories of many runs, each under the name
            of its run folder; None keeps it in `run_dir`.
        run_dir: the run's folder; None for a run that writes nothing.
    """
    if run_dir is None:
        return None
    if configured is None:
        return run_dir / HISTORY_FOLDER
    return f"{configured.rstrip('/')}/{run_dir.name}"
