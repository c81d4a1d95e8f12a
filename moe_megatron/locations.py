"""Where arrays are stored: a folder or a bucket's prefix, in TensorStore's terms.

Nothing is opened or created here. TensorStore finds credentials itself: for S3 in the environment,
the profile or the machine's role, for Google Cloud in the application default credentials.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

_BUCKETS = {"s3": "s3", "gs": "gcs"}
_SPEC = re.compile(r" \[tensorstore_spec=.*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A place that can hold arrays.

    Attributes:
        text: its name in messages.
        kvstore: TensorStore's specification of its key-value store; the path ends in "/".
        folder: the local folder; None for a bucket.
    """

    text: str
    kvstore: dict[str, Any]
    folder: Path | None

    def below(self, name: str) -> dict[str, Any]:
        """The key-value store of what has this name there."""
        return {**self.kvstore, "path": f"{self.kvstore['path']}{name}/"}


def parse_location(address: str | Path, what: str) -> Location:
    """Parses a path, file:///path, s3://bucket/prefix or gs://bucket/prefix.

    AWS_ENDPOINT_URL selects an S3-compatible server, as for Amazon's own tools.

    Args:
        address: The place.
        what: What is stored, for messages.

    Raises:
        ConfigError: the scheme is unknown, the bucket is missing, or there are credentials in it.
    """
    text = str(address)
    if "://" not in text:
        return _local(Path(address))
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ConfigError(
            f"an address for {what} must not have a name or password in it, which others could "
            "read; leave them out, and give credentials by the environment (AWS_ACCESS_KEY_ID, "
            "AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS) or the machine's role."
        )
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return _local(Path(parts.path))
    if parts.scheme not in _BUCKETS or not parts.netloc:
        raise ConfigError(
            f"{what} cannot be kept at '{text}'; give a folder, file:///FOLDER, "
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


def reason_of(error: Exception) -> str:
    """TensorStore's message without the specification, which fills a screen."""
    return _SPEC.sub("", str(error)).strip()


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
