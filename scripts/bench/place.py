"""Where things are: sources on disk (and in the page cache), landings on tmpfs and on disk."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from settings import MIB, SIZE_BYTES

SHM = pathlib.Path("/dev/shm")


class Place:
    def __init__(self, target):
        self.target = target
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="fts-bench.", dir=target))
        # The landed file, or the scratch file before it, and room to breathe.
        self.on_tmpfs = (
            os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > 2 * SIZE_BYTES + 256 * MIB
        )
        parent = SHM if self.on_tmpfs else self.work
        self.memory = pathlib.Path(tempfile.mkdtemp(prefix="fts-bench.", dir=parent))
        self.disk = self.work / "landing"
        self.sources = self.work / "source"
        self.disk.mkdir()
        self.sources.mkdir()

    def program(self, name):
        return self.target / "release" / name

    def source(self, name, size_bytes):
        """A file of random bytes, made when it is first asked for."""
        path = self.sources / name
        if not path.exists():
            fill(path, size_bytes)
        return path

    def room(self, name):
        """A directory of one contender's own: configuration, logs, state."""
        return pathlib.Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self.work))

    def close(self):
        shutil.rmtree(self.memory, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)


def fill(path, size_bytes):
    with open(path, "wb") as out:
        left = size_bytes
        while left > 0:
            left -= out.write(os.urandom(min(left, MIB)))


def warm(sources, landing):
    """Touches the sources, and as much fresh memory as the destination will need.

    A virtual machine needs seconds to get a fresh GiB from its host, and gives it back when it is
    free for a moment.
    """
    scratch = landing / "scratch"
    with open(scratch, "wb") as out:
        for path in sources:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, out, MIB)
    scratch.unlink()


def settle(landing):
    """Waits until nothing is left to be written to the disk of a landing."""
    subprocess.run(["sync", "-f", landing], check=True)


def file_system(path):
    """The kind of a file system, such as tmpfs."""
    command = ["stat", "-f", "-c", "%T", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
