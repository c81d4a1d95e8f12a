"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """As it is installed; "0+unknown" in a checkout that is not."""
    try:
        return version("open-moe-trainer-lab")
    except PackageNotFoundError:
        return "0+unknown"
