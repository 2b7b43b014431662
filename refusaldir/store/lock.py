"""One writer per capture: an advisory lock that the system drops when its process dies."""

import contextlib
import errno
import os
import sys
from pathlib import Path

from refusaldir.errors import StoreError

# What lock calls give on file systems that have no locks (some network mounts).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FileLock:
    """Holds ``flock`` on a file of its own, so that the locked file can be replaced at will.

    The file holds the process id of the writer and is removed on release. After a kill it
    stays, unlocked, and the next writer takes it over. Where the file system has no locks, the
    lock is always granted.

    Args:
        path: The lock file.

    Raises:
        StoreError: Another process, or another writer in this one, holds the lock.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock or raise at once."""
        self.path = path
        self._fd: int | None = self._acquire()

    def release(self) -> None:
        """Remove the lock file and drop the lock; harmless when done twice."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._fd)
            self._fd = None

    def _acquire(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                self._flock(fd)
                # Between open and flock the previous holder may have removed the file.
                if _same_file(fd, self.path):
                    os.ftruncate(fd, 0)
                    os.write(fd, str(os.getpid()).encode())
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _flock(self, fd: int) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode("ascii", "replace") or "unknown"
            raise StoreError(
                "Another writer has this capture open",
                got=f"a lock held by process {pid}",
                where=self.path,
                next_step="Wait for it to finish, or write to another file",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
