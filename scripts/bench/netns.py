"""A cloud host and a site behind NAT, in network namespaces of this run, joined by a long link.

    cloud (10.88.0.1) == link: delay, rate, queue == nat (masquerade) -- site (192.168.88.2)

As root. The site can dial the cloud, and the cloud cannot dial the site. Everything goes with
`close`.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import socket
import subprocess
import sys

from programs import Ended, end, start, wait_for

CLOUD_ADDRESS = "10.88.0.1"
NAT_ADDRESS = "10.88.0.2"
LAN_ADDRESS = "192.168.88.1"
SITE_ADDRESS = "192.168.88.2"
WIRE = pathlib.Path(__file__).with_name("wire.py")
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

NAT_RULES = """
table ip nat {
  chain leaving {
    type nat hook postrouting priority 100;
    oifname "wan" masquerade
  }
}
table ip filter {
  chain through {
    type filter hook forward priority 0; policy drop;
    iifname "lan" accept
    ct state established,related accept
  }
}
"""


@contextlib.contextmanager
def inside(namespace):
    """This thread in a network namespace. What it opens there stays of there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        enter(there)
        try:
            yield
        finally:
            enter(home)


def enter(namespace):
    # os.setns is of Python 3.12.
    if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def why_not():
    """Why this machine can have no such network, or None."""
    if os.getuid() != 0:
        return "needs root, for network namespaces"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    probe = ["unshare", "--net", "true"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        return "may not make network namespaces"
    return None


class Lab:
    """The other network beside loopback.Loopback, with the same face."""

    host = CLOUD_ADDRESS
    listen = "0.0.0.0:0"
    consent = ("--insecure",)

    def __init__(self, place, delay_ms, rate_bps, queue_bytes):
        name = f"ftsb{os.getpid()}"
        self.cloud, self.nat, self.site = (f"{name}-{end}" for end in ("cloud", "nat", "site"))
        self.at_cloud = ("ip", "netns", "exec", self.cloud)
        self.at_site = ("ip", "netns", "exec", self.site)
        self.wire = None
        self.made = []
        self.log = place.room("wire") / "log"
        self.next_port = 7000
        link = [self.cloud, "wan", self.nat, "wan"]
        link += [str(delay_ms), str(rate_bps), str(queue_bytes)]
        try:
            self.build(link)
        except BaseException:
            self.close()
            raise

    def build(self, link):
        for namespace in (self.cloud, self.nat, self.site):
            ip("netns", "add", namespace)
            self.made.append(namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        self.wire = start([sys.executable, WIRE, *link], self.log)
        wait_for("the link is there", self.wire, lambda: "ready" in self.log.read_text())
        # Bursts wait in the link's own queue, not in the device's.
        for namespace, address in ((self.cloud, CLOUD_ADDRESS), (self.nat, NAT_ADDRESS)):
            ip("-n", namespace, "addr", "add", f"{address}/30", "dev", "wan")
            ip("-n", namespace, "link", "set", "wan", "up", "txqueuelen", "10000")
        peer = ["peer", "name", "lan", "netns", self.site]
        ip("-n", self.nat, "link", "add", "lan", "type", "veth", *peer)
        for namespace, address in ((self.nat, LAN_ADDRESS), (self.site, SITE_ADDRESS)):
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "lan")
            ip("-n", namespace, "link", "set", "lan", "up")
        ip("-n", self.nat, "route", "add", "default", "via", CLOUD_ADDRESS)
        ip("-n", self.site, "route", "add", "default", "via", LAN_ADDRESS)
        with inside(self.nat):
            pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        nft = ["ip", "netns", "exec", self.nat, "nft", "-f", "-"]
        subprocess.run(nft, input=NAT_RULES, text=True, check=True)

    def free_port(self):
        """Nobody else listens here."""
        self.next_port += 1
        return self.next_port

    def connect(self, port, timeout_s):
        with inside(self.cloud):
            return socket.create_connection((self.host, port), timeout=timeout_s)

    def listens(self, port):
        try:
            self.connect(port, 1).close()
        except OSError:
            return False
        return True

    def close(self):
        if self.wire is not None:
            end(self.wire)
        for namespace in reversed(self.made):
            ip("netns", "delete", namespace)
        self.made = []

    def told(self):
        """What the link says of itself, once it is closed."""
        lines = self.log.read_text().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise Ended(f"ip {' '.join(words)}: {done.stderr.strip()}")


def received_bytes(pid, device):
    """What a device of a process's network has received, headers and all."""
    for line in pathlib.Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            return int(counters.split()[0])
    raise KeyError(device)
