"""The peers' programs: which are here, and how the others are installed, without any service."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import uuid

from programs import which

PACKAGES = {
    "rsync": "rsync",
    "sshd": "openssh-server",
    "scp": "openssh-client",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nginx": "nginx-light",
    "curl": "curl",
    "iperf3": "iperf3",
    "ip": "iproute2",
    "nft": "nftables",
}
# What the packages would start, and enable for the next boot.
SERVICES = {
    "rsync": ["rsync.service"],
    "openssh-server": ["ssh.service", "ssh.socket"],
    "nginx-light": ["nginx.service"],
    "iperf3": ["iperf3.service"],
    "nftables": ["nftables.service"],
}
MARK = "FTS_BENCH_INSTALL"

# As root. The policy (101: forbidden) keeps packages from starting anything; the lock keeps a
# second run from relying on a policy that the first one is about to remove.
INSTALL = """
set -eu
exec 9</usr/sbin
flock 9
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
    answer=0
    "$policy" ssh start >/dev/null 2>&1 || answer=$?
    if [ "$answer" != 101 ]; then
        echo "$policy lets packages start services" >&2
        exit 3
    fi
else
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\\nexit 101\\n' >"$policy"
    chmod 755 "$policy"
fi
get() {
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}
export DEBIAN_FRONTEND=noninteractive
get PACKAGES || { apt-get update -qq && get PACKAGES; }
if [ -d /run/systemd/system ]; then
    for unit in UNITS; do
        if systemctl cat "$unit" >/dev/null 2>&1; then systemctl disable --now "$unit"; fi
    done
else
    for unit in UNITS; do
        # It fails on what is not enabled.
        if ls /etc/rc?.d/S??"${unit%.*}" >/dev/null 2>&1; then update-rc.d "${unit%.*}" disable; fi
    done
fi
"""


class Tools:
    """`path` says where a program is; `install` adds what is missing, if it may."""

    def __init__(self):
        self.refusal = None

    @staticmethod
    def path(name):
        return which(name)

    def why_missing(self):
        return f" ({self.refusal})" if self.refusal else ""

    def install(self, needed):
        missing = [name for name in needed if not which(name)]
        if not missing:
            return
        packages = sorted({PACKAGES[name] for name in missing})
        self.refusal = self.install_packages(packages)

    @staticmethod
    def install_packages(packages):
        """Returns why it did not come to be."""
        if os.environ.get("INSTALL", "1") == "0":
            return "INSTALL=0"
        if not which("apt-get"):
            return "no apt-get to install it with"
        as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
        if as_root and (
            not which("sudo") or subprocess.run([*as_root, "true"], capture_output=True).returncode
        ):
            return "not root, and no sudo without a password"
        print(f"bench: installing {' '.join(packages)}", file=sys.stderr)
        units = [unit for package in packages for unit in SERVICES.get(package, [])]
        script = INSTALL.replace("PACKAGES", shlex.join(packages))
        script = script.replace("UNITS", shlex.join(units) or "''")
        mark = f"{MARK}={uuid.uuid4()}"
        done = subprocess.run(
            [*as_root, "env", mark, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
        end_marked(mark, as_root)
        return f"its installation failed with {done.returncode}" if done.returncode else None


def end_marked(mark, as_root):
    """Ends what an installation left running all the same: it has its mark in its environment."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = [*as_root, "cat", entry / "environ"] if as_root else None
            environ = (
                subprocess.run(command, capture_output=True).stdout
                if command
                else (entry / "environ").read_bytes()
            )
        except OSError:
            continue
        if mark.encode() in environ.split(b"\0"):
            print(f"bench: ending {entry.name}, which the installation started", file=sys.stderr)
            subprocess.run([*as_root, "kill", f"-{signal.SIGTERM.value}", entry.name])
