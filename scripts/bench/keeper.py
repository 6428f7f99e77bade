"""Holds memory that is already backed, and gives it back step by step, ahead of a transfer.

A virtual machine returns free memory to its host within seconds, and pays 4 s for each GiB that it
takes again: more than 2 GiB cannot be warmed by writing and deleting them before a run.
"""

import mmap
import pathlib
import threading

from settings import MIB

STEP_BYTES = 32 * MIB
AHEAD_BYTES = 192 * MIB
LOOK_EVERY_S = 0.002


def memory_bytes(field):
    """A field of /proc/meminfo, such as MemFree."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class Keeper:
    """For the time of a `with`, keeps free memory at what it was, and a little more.

    The memory is the process's own: in a file it would take room from the file system that a server
    looks at before it takes a file."""

    def __init__(self, size_bytes):
        self.left_bytes = size_bytes + AHEAD_BYTES
        self.done = threading.Event()

    def __enter__(self):
        self.memory = mmap.mmap(-1, self.left_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        piece = b"\xff" * MIB
        try:
            for _ in range(0, self.left_bytes, MIB):
                self.memory.write(piece)
            self.free_bytes_min = memory_bytes("MemFree") + AHEAD_BYTES
            self.give()
            self.giver = threading.Thread(target=self.watch, daemon=True)
            self.giver.start()
        except BaseException:
            self.memory.close()
            raise
        return self

    def watch(self):
        while not self.done.wait(LOOK_EVERY_S):
            self.give()

    def give(self):
        while self.left_bytes > 0 and memory_bytes("MemFree") < self.free_bytes_min:
            step = min(STEP_BYTES, self.left_bytes)
            self.left_bytes -= step
            self.memory.madvise(mmap.MADV_DONTNEED, self.left_bytes, step)

    def __exit__(self, *_):
        self.done.set()
        self.giver.join()
        self.memory.close()
