"""Fetches models from the Hugging Face Hub, and publishes folders, through `huggingface_hub`.

Only weights in safetensors are transferred; pickled weights and code are never fetched or sent. The
token is the one that `huggingface_hub` finds in its own store or in the environment. It is never
held in a variable of ours, so that no message of ours can contain it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_megatron.checkpoint.formats.hf_folder import CONFIG, INDEX, HfFolder
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.formats.side_files import PATTERNS
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.telemetry.values.profile import PROFILE_FILE

ALLOWED = (CONFIG, INDEX, PROFILE_FILE, "*.safetensors", *PATTERNS)
"""Files that are fetched and sent."""
REFUSED = ("*/*", "consolidated*", "*.py", "*.bin", "*.pt", "*.pth")
"""Exceptions to `ALLOWED`: folders (originals in other formats), second copies, pickles, code."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def local_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The local folder of a model; a model on the Hub is downloaded.

    Args:
        source: A folder, or an id such as "allenai/OLMoE-1B-7B-0924". An existing folder wins.
        revision: Branch, tag or commit on the Hub; None for the main branch.

    Returns:
        A local folder; a downloaded model is in the cache of `huggingface_hub` (HF_HOME).

    Raises:
        CheckpointError: There is no such folder or model, or the Hub cannot be reached and the
            cache does not hold all of it.
    """
    folder = given_folder(source)
    if folder.exists():
        return folder
    name = str(source)
    if not _ID.fullmatch(name):
        raise CheckpointError(
            f"{source} is neither a folder nor a Hub id ('owner/name'); give the path of a model "
            "folder, or a Hub id."
        )
    from huggingface_hub import snapshot_download

    with _explained(name, f"{name} is not a local folder, and could not be fetched from the Hub"):
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(ALLOWED),
            ignore_patterns=list(REFUSED),
        )
    assert isinstance(found, str)
    return Path(found)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Publish a Hugging Face model folder.

    Args:
        folder: Folder with `config.json` and safetensors, such as an exported checkpoint.
        repo_id: "owner/name"; created if it does not exist.
        private: Whether a new repository is private; an existing one is not changed.
        revision: Branch to push to; None for the main branch.
        message: Commit message.

    Returns:
        The address of the model's page.

    Raises:
        CheckpointError: The folder is not a complete model, or the Hub refuses it or cannot be
            reached.
    """
    path = given_folder(folder)
    if is_megatron_checkpoint(path):
        raise CheckpointError(
            f"{path} is a Megatron checkpoint; convert it first (moe-megatron convert {path} "
            "my_model) and push that folder."
        )
    HfFolder(path)  # raises if the model is incomplete
    if not _ID.fullmatch(repo_id):
        raise CheckpointError(f"'{repo_id}' is not a Hub id; write 'owner/name'.")
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(repo_id, f"{path} could not be pushed to {repo_id}"):
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=path,
            revision=revision,
            commit_message=message or f"Upload {path.name}",
            allow_patterns=list(ALLOWED),
            ignore_patterns=list(REFUSED),
        )
    return str(created)


@contextmanager
def _explained(name: str, failure: str) -> Iterator[None]:
    """Turn errors of `huggingface_hub` into a `CheckpointError` that says what to do."""
    from huggingface_hub import constants, errors

    # The error class of the HTTP library that this version of huggingface_hub uses.
    http_error: type[Exception] = vars(errors)["HTTPError"]
    cache, endpoint = constants.HF_HUB_CACHE, constants.ENDPOINT
    give_path = "or give the path of a model folder"
    try:
        yield
    except errors.HFValidationError as error:
        raise CheckpointError(f"{failure}: {_first_line(error)}") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{failure}: access must be granted by its owner. Request it on {endpoint}/{name} and "
            f"log in (hf auth login, or HF_TOKEN in the environment), {give_path}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{failure}: it has no such revision; leave it out.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{failure}: {endpoint} has no such model that you can see. Check the id; if it is "
            f"private, log in (hf auth login, or HF_TOKEN in the environment); {give_path}."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{failure}: {_why_offline(endpoint)}, and {cache} holds no complete copy. Connect "
            f"(and unset HF_HUB_OFFLINE), fetch it once with 'hf download {name}', {give_path}."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(
            f"{failure}: {endpoint} answered {status}. "
            + (
                "Log in with a token that has this permission (hf auth login, or HF_TOKEN)."
                if status in {401, 403}
                else "Try again later."
            )
        ) from error
    except (http_error, OSError) as error:
        raise CheckpointError(
            f"{failure}: {_first_line(error)}. Check the connection to {endpoint} and the space "
            f"and permissions of {cache}."
        ) from error


def _why_offline(endpoint: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return f"{endpoint} cannot be reached"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
