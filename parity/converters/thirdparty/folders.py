"""Where converters that write files write them: never in the user's folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def _root() -> Path:
    root = tempfile.mkdtemp(prefix="parity-converted-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


def fresh_folder() -> Path:
    """An empty folder that lasts as long as this process: some artifacts read their files when they are first used."""
    return Path(tempfile.mkdtemp(dir=_root()))
