"""What a run costs: CPU seconds and peak memory of programs and their children, from /proc."""

import contextlib
import os
import pathlib
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
LOOK_EVERY_S = 0.02


def tree(pid):
    """A process, and all that descend from it."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
            todo += [int(child) for child in children.split()]
    return found


class Peak:
    """The sum of the peaks of a process and its children, looked at while they run.

    wait4 tells a peak too, but it counts what this Python had resident before the exec.
    """

    def __init__(self, pid):
        self.pid = pid
        self.bytes_by_pid = {}
        self.done = threading.Event()
        # Children that are made for one run end with it, so they are looked at meanwhile.
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self):
        while not self.done.wait(LOOK_EVERY_S):
            self.look()

    def look(self):
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.bytes_by_pid[pid] = int(line.split()[1]) * 1024

    def stop(self):
        """Returns the peak. None was seen of what ended at once."""
        self.done.set()
        self.watcher.join()
        return sum(self.bytes_by_pid.values()) or None


class Tree:
    """CPU and memory of a program that stays, and of the children it makes, for one run."""

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        before = tree(self.pid)
        self.children_before = len(before)
        for pid in before:
            # 5 resets VmHWM to what is resident now. A process of another user keeps its own.
            with contextlib.suppress(OSError):
                pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.cpu_s_before = self.cpu_s()
        self.peak = Peak(self.pid)
        return self

    def __exit__(self, *_):
        # The CPU time of a child that was made for the run counts once its parent has reaped it.
        deadline = time.monotonic() + 1
        while len(tree(self.pid)) > self.children_before and time.monotonic() < deadline:
            time.sleep(0.005)
        self.peak.look()
        self.cost = {
            "cpu_s": self.cpu_s() - self.cpu_s_before,
            "peak_bytes": self.peak.stop(),
        }

    def cpu_s(self):
        """User and system time; that of ended children is counted by their parent."""
        total = 0
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):
                text = pathlib.Path(f"/proc/{pid}/stat").read_text()
                fields = text.rpartition(")")[2].split()
                total += sum(int(field) for field in fields[11:15])
        return total / TICKS
