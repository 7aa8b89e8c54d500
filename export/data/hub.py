"""Locates data sets: on the Hugging Face hub, or in the folder that HEED_DATASETS names."""

import os
from pathlib import Path


def source_of(hub_id: str, folder: str) -> str:
    """Return where to read a data set from: `$HEED_DATASETS/<folder>` if that is set, else the hub.

    Raises:
        FileNotFoundError: HEED_DATASETS is set, but has no such folder; a silent download would be a surprise.
    """
    root = os.environ.get("HEED_DATASETS")
    if not root:
        return hub_id
    path = Path(root) / folder
    if not path.is_dir():
        raise FileNotFoundError(f"HEED_DATASETS is set to {root}, but there is no folder {path}")
    return str(path)
