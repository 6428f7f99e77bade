"""Starts other programs, waits for them, and ends them, whatever happens here."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

from cost import Peak

START_WAIT_S = 30
END_WAIT_S = 10


class Ended(Exception):
    """A program that was needed did not do its work."""


def which(name):
    """The path of a program. sshd and nginx are where ordinary users do not look."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def tethered(command):
    """The command, so that it is told to end if this process is killed."""
    setpriv = shutil.which("setpriv")
    tether = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    return tether + [str(word) for word in command]


def start(command, log_path, environ=None, **options):
    """Starts a program that stays. To be called from the main thread: the tether is a thread's."""
    with open(log_path, "ab") as log:
        return subprocess.Popen(
            tethered(command),
            env=environ,
            stdin=subprocess.DEVNULL,
            stderr=log,
            # Ctrl-C ends this program, which ends the others in their order.
            start_new_session=True,
            **options,
        )


def wait_for(what, process, probe):
    deadline = time.monotonic() + START_WAIT_S
    while True:
        found = probe()
        if found:
            return found
        if process.poll() is not None:
            raise Ended(f"{' '.join(process.args)}: ended before {what}")
        if time.monotonic() > deadline:
            raise Ended(f"waited in vain for {what}")
        time.sleep(0.05)


def end(process):
    """Ends a program that `start` or `run_once` started, and what it left behind."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(timeout=END_WAIT_S)
    except subprocess.TimeoutExpired:
        words = " ".join(process.args)
        print(f"bench: killed, for it did not end in {END_WAIT_S} s: {words}", file=sys.stderr)
    # Its group is of its session, which it got from us.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_once(command, environ=None):
    """Runs a command to its end. Returns its seconds, and its cost."""
    words = [str(word) for word in command]
    began = time.monotonic()
    # Not tethered: a run is short, and another exec would count as its time.
    process = subprocess.Popen(
        words, env=environ, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        peak = Peak(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        end(process)
        raise
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    cost = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_bytes": peak.stop()}
    if process.returncode != 0:
        raise Ended(f"{' '.join(words)}: failed with {process.returncode}")
    return seconds, cost
