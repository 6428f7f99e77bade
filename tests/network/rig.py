"""A server in the cloud, and a client on a site behind a NAT, in network namespaces of this run.

    cloud 10.88.0.1 == wan == 10.88.0.2 nat 192.168.88.1 == lan == 192.168.88.2 site
                                        192.168.89.1 == side == 192.168.89.2 aside

Aside is a third host: an operator's, a proxy, or whoever took the router over.

The NAT is a strict one: what it does not know is dropped without a word, even in the middle of a
connection (`nf_conntrack_tcp_loose=0`). Otherwise a packet from the site would make an expired
mapping anew, or with another port have the server answer with a reset: either way nobody would need
a deadline. The line is cut inside the NAT's host, where it looks to both ends like a cable that is
cut: what is dropped on the host that sends it is sent again at another pace.

As root. Names carry the process id, so that several runs may coexist; what a killed run has left
is removed by the next one.
"""

import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

CLOUD, SITE_GATEWAY = "10.88.0.1", "192.168.88.1"
OUTSIDE, SITE = ("10.88.0.2", "10.88.0.3"), ("192.168.88.2", "192.168.88.3")
ASIDE_GATEWAY, ASIDE = "192.168.89.1", "192.168.89.2"
PORT = 3000
PORTS_OF_ONE_LIFE = 10_000
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
NAME_PATTERN = re.compile(r"ftsnet(\d+)-(?:cloud|nat|site|aside)")
# A program that starts, on a busy machine, or a call.
PATIENCE_S = 30
# One that is told to end may take 45 s: uploads may finish.
END_S = 50

NAT_RULES = """
add table ip nat
delete table ip nat
table ip nat {{
  chain leaving {{
    type nat hook postrouting priority srcnat;
    oifname "wan" meta l4proto tcp masquerade to :{first}-{last}
  }}
  chain through {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    iifname {{ "lan", "side" }} accept
    ct state established accept
  }}
  chain itself {{
    type filter hook input priority filter; policy accept;
    iifname "wan" drop
  }}
}}
"""
MENDED = """
add table ip line
delete table ip line
"""
CUT_TO_SERVER = """
  chain to_server { type filter hook postrouting priority 300; oifname "wan" drop; }
"""
CUT_TO_CLIENT = """
  chain to_client { type filter hook prerouting priority -400; iifname "wan" drop; }
"""
REDIRECTED = """
table ip detour {{
  chain dialled {{
    type nat hook prerouting priority dstnat;
    iifname "lan" ip daddr {cloud} tcp dport {port} dnat to {aside}
  }}
}}
"""
NOT_REDIRECTED = """
add table ip detour
delete table ip detour
"""
WALLED_OFF = """
table ip wall {
  chain out { type filter hook forward priority 10; iifname "lan" oifname "wan" drop; }
}
"""
NOT_WALLED_OFF = """
add table ip wall
delete table ip wall
"""


class Failed(Exception):
    """The network, or a program, did not do what it must."""


@contextlib.contextmanager
def inside(namespace):
    """This thread in a network namespace: what it opens or starts there stays there."""
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


def run(*words, text=None):
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not():
    """Why this machine can have no such network, or None."""
    if os.getuid() != 0:
        return "root, for network namespaces"
    name = f"ftsnet{os.getpid()}-nat"
    try:
        run("ip", "netns", "add", name)
    except (Failed, FileNotFoundError) as err:
        return f"network namespaces ({err})"
    try:
        with inside(name):
            run("nft", "-f", "-", text=NAT_RULES.format(first=1024, last=2048))
            run("conntrack", "-F")
            sysctl("netfilter/nf_conntrack_tcp_loose", 0)
    except (Failed, OSError) as err:
        return f"a NAT of nftables and conntrack ({err})"
    finally:
        run("ip", "netns", "delete", name)
    return None


def sysctl(name, value):
    """Of the namespace that this thread is in."""
    pathlib.Path("/proc/sys/net", name).write_text(str(value))


def remove_leftovers():
    """Removes the namespaces of runs that were killed, and ends the programs in them."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        match = NAME_PATTERN.fullmatch(name)
        if match and not pathlib.Path("/proc", match[1]).exists():
            with contextlib.suppress(Failed, ProcessLookupError):
                for pid in run("ip", "netns", "pids", name).split():
                    os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "delete", name)


class Rig:
    """The network, one for each process. It goes with `close`."""

    def __init__(self, *, established_s=None, loose=False):
        names = (f"ftsnet{os.getpid()}-{host}" for host in ("cloud", "nat", "site", "aside"))
        self.cloud, self.nat, self.site, self.aside = names
        self.made = []
        self.first_port = 20_000
        self.outside, self.site_address = OUTSIDE[0], SITE[0]
        try:
            self._build(established_s, loose)
        except BaseException:
            self.close()
            raise

    def _build(self, established_s, loose):
        for namespace in (self.cloud, self.nat, self.site, self.aside):
            run("ip", "netns", "add", namespace)
            self.made.append(namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        self._join(self.nat, "wan", f"{self.outside}/24", self.cloud, "wan", f"{CLOUD}/24")
        gateway, site = f"{SITE_GATEWAY}/24", f"{self.site_address}/24"
        self._join(self.nat, "lan", gateway, self.site, "lan", site)
        self._route_site()
        gateway, aside = f"{ASIDE_GATEWAY}/24", f"{ASIDE}/24"
        self._join(self.nat, "side", gateway, self.aside, "side", aside)
        run("ip", "-n", self.aside, "route", "replace", "default", "via", ASIDE_GATEWAY)
        with inside(self.nat):
            sysctl("ipv4/ip_forward", 1)
            self._set_nat()
            sysctl("netfilter/nf_conntrack_tcp_loose", int(loose))
            if established_s is not None:
                sysctl("netfilter/nf_conntrack_tcp_timeout_established", established_s)

    @staticmethod
    def _join(left, left_device, left_address, right, right_device, right_address):
        peer = ["peer", "name", right_device, "netns", right]
        run("ip", "-n", left, "link", "add", left_device, "type", "veth", *peer)
        for namespace, device, address in (
            (left, left_device, left_address),
            (right, right_device, right_address),
        ):
            run("ip", "-n", namespace, "address", "add", address, "dev", device)
            run("ip", "-n", namespace, "link", "set", device, "up")

    def _route_site(self):
        run("ip", "-n", self.site, "route", "replace", "default", "via", SITE_GATEWAY)

    def _set_nat(self):
        last = self.first_port + PORTS_OF_ONE_LIFE - 1
        run("nft", "-f", "-", text=NAT_RULES.format(first=self.first_port, last=last))

    def cut(self, direction):
        """Cuts the line, `to-server`, `to-client` or in `both` directions: nobody is told."""
        rules = CUT_TO_SERVER if direction in ("to-server", "both") else ""
        rules += CUT_TO_CLIENT if direction in ("to-client", "both") else ""
        with inside(self.nat):
            run("nft", "-f", "-", text=f"{MENDED} table ip line {{ {rules} }}")

    def mend(self):
        with inside(self.nat):
            run("nft", "-f", "-", text=MENDED)

    def redirect(self):
        """What the site dials to the server comes to the host aside; it is not told so."""
        rules = REDIRECTED.format(cloud=CLOUD, port=PORT, aside=ASIDE)
        with inside(self.nat):
            run("nft", "-f", "-", text=NOT_REDIRECTED + rules)

    def stop_redirecting(self):
        with inside(self.nat):
            run("nft", "-f", "-", text=NOT_REDIRECTED)

    def wall_off(self):
        """The site has no way out but the host aside."""
        with inside(self.nat):
            run("nft", "-f", "-", text=NOT_WALLED_OFF + WALLED_OFF)

    def open_wall(self):
        with inside(self.nat):
            run("nft", "-f", "-", text=NOT_WALLED_OFF)

    def forget(self):
        """The router reboots: it knows no connection, and gives other ports to new ones."""
        self.first_port = self.first_port % 50_000 + PORTS_OF_ONE_LIFE
        with inside(self.nat):
            self._set_nat()
            run("conntrack", "-F")

    def change_outside_address(self):
        """The provider gives the router another address. What comes to the old one is lost."""
        old, self.outside = self.outside, OUTSIDE[OUTSIDE.index(self.outside) - 1]
        run("ip", "-n", self.nat, "address", "delete", f"{old}/24", "dev", "wan")
        run("ip", "-n", self.nat, "address", "add", f"{self.outside}/24", "dev", "wan")

    def change_site_address(self):
        """The client's machine moves to another address."""
        old, self.site_address = self.site_address, SITE[SITE.index(self.site_address) - 1]
        run("ip", "-n", self.site, "address", "delete", f"{old}/24", "dev", "lan")
        run("ip", "-n", self.site, "address", "add", f"{self.site_address}/24", "dev", "lan")
        self._route_site()

    def connect(self, namespace, port):
        with inside(namespace):
            return socket.create_connection((CLOUD, port), timeout=PATIENCE_S)

    def close(self):
        # One that cannot be deleted does not keep the others.
        for namespace in reversed(self.made):
            with contextlib.suppress(Failed):
                run("ip", "netns", "delete", namespace)
        self.made = []


def around(*, environment=None, directory=None):
    """What a program has around it: no variable but these, and those that find it."""
    # A server does not mind how full the disk of the tests is.
    fixed = {"PATH": os.environ["PATH"], "FTS_DISK_LOW": "1KB"}
    return {"env": {**fixed, **(environment or {})}, "cwd": directory}


def call(namespace, command, *, text="", **surroundings):
    """Runs a program to its end."""
    with inside(namespace):
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            **around(**surroundings),
        )


class Program:
    """A running program, and its log: JSON lines."""

    def __init__(self, namespace, log, command, **surroundings):
        self.log = log
        with inside(namespace), open(log, "ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                **around(**surroundings),
            )

    def lines(self, message=None):
        """What it, and those before it, have logged."""
        texts = self.log.read_text().splitlines()
        lines = [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]
        return [line for line in lines if message in (None, line["message"])]

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def end(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failed(f"{self.log.name}: did not end") from None


class Operator:
    """Speaks HTTP with the server, from its own host: over TLS, if it trusts anybody."""

    def __init__(self, rig, trust=None, token=None):
        self.rig, self.trust = rig, trust
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def ask(self, method, path):
        connection = http.client.HTTPConnection(CLOUD, PORT, timeout=PATIENCE_S)
        connection.sock = self.rig.connect(self.rig.cloud, PORT)
        try:
            if self.trust:
                connection.sock = self.trust.wrap_socket(connection.sock, server_hostname=CLOUD)
            connection.request(method, path, headers=self.headers)
            answer = connection.getresponse()
            body = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status >= 400:
            raise Failed(f"{method} {path}: {answer.status} {body}")
        return body


def until(what, seconds, probe, since=None):
    """Waits for what `probe` finds; returns it, and how many seconds after `since` it was there."""
    since = time.monotonic() if since is None else since
    while True:
        found = probe()
        took = time.monotonic() - since
        if found:
            return found, took
        if took > seconds:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)
