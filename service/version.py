"""The version of Heed, read from the metadata of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version; "unknown" if the package runs from a folder without being installed."""
    try:
        return version("heed")
    except PackageNotFoundError:
        return "unknown"
