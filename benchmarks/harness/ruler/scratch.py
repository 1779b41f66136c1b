"""A temporary folder that does not outlive its owner for long, however that ends.

A killed process cleans nothing up, so the next one does: whoever makes a folder first removes those of the same kind
whose owner is gone. An owner is alive as long as it holds the lock on a file in its folder, which the system lets go
with the process, whatever namespace or machine that ran in. Free of torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType

_OWNER = "owner"  # the locked file
_UNOWNED_S = 3600.0  # a folder without it is being made, or was left by a version that had no locks


class Scratch:
    """A fresh temporary folder whose name begins with ``prefix``; :meth:`close` or the end of ``with`` removes it."""

    def __init__(self, prefix: str) -> None:
        remove_abandoned(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock = os.open(self.path / f".{_OWNER}", os.O_CREAT | os.O_RDWR, 0o600)
        _try_lock(self._lock)
        os.rename(self.path / f".{_OWNER}", self.path / _OWNER)  # from here on it is owned, and locked already

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(prefix: str) -> None:
    """Remove this user's folders of a kind whose owner is gone."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(prefix) and _abandoned(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return False
        if not (folder / _OWNER).exists():
            return time.time() - status.st_mtime > _UNOWNED_S
        lock = os.open(folder / _OWNER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # gone meanwhile, or nothing of ours
        return False
    try:
        return _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """Whether the lock is ours now; where the system has no such locks, nobody ever gets another's."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
