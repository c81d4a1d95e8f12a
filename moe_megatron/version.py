"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Version of the installed package, or "0+unknown" in a checkout that is not installed."""
    try:
        return version("open-moe-trainer-lab")
    except PackageNotFoundError:
        return "0+unknown"
