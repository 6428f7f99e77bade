"""The machine, and the versions of everything: a figure without them means nothing."""

import contextlib
import os
import pathlib
import platform
import subprocess

from place import file_system
from programs import which

VERSION_COMMANDS = {
    "commit": ["git", "describe", "--always", "--dirty"],
    "rustc": ["rustc", "--version"],
    "cp": ["cp", "--version"],
    "rsync": ["rsync", "--version"],
    "ssh": ["ssh", "-V"],
    "nginx": ["nginx", "-v"],
    "curl": ["curl", "--version"],
    "iperf3": ["iperf3", "--version"],
    "iproute2": ["ip", "-V"],
    "nftables": ["nft", "--version"],
}


def first_line(command):
    path = which(str(command[0]))
    if path is None:
        return None
    with contextlib.suppress(OSError, subprocess.CalledProcessError, IndexError):
        # Some tell it on standard error.
        done = subprocess.run(
            [path, *command[1:]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        )
        return done.stdout.splitlines()[0]
    return None


def sysctl(name):
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys", *name.split(".")).read_text().strip()
    return None


def machine(place):
    cpu = None
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load_at_start": os.getloadavg(),
        "congestion_control": sysctl("net.ipv4.tcp_congestion_control"),
        "file_systems": {
            "memory": file_system(place.memory),
            "disk": file_system(place.disk),
        },
    }


def versions(place):
    found = {name: first_line(command) for name, command in VERSION_COMMANDS.items()}
    found["fts"] = first_line([place.program("fts-server"), "--version"])
    found["python"] = platform.python_version()
    return found
