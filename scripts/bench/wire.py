"""A long link between two network namespaces: a delay, a rate and a queue in each direction.

It carries the packets of two TUN devices itself, because many kernels have no netem. It says
"ready" once the devices are there, and its counters when it is ended, on standard error.

    wire.py NAMESPACE DEVICE NAMESPACE DEVICE DELAY_MS RATE_BPS QUEUE_BYTES
"""

import collections
import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import sys
import time

from netns import inside

PACKET_BYTES_MAX = 65536
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# Packets that are due within this leave together, or each would need a call to wait for it.
TOGETHER_S = 0.0005


def open_tun(namespace, device):
    with inside(namespace):
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    return tun


class Direction:
    def __init__(self, source, sink, delay_s, rate_bps, queue_bytes):
        self.source, self.sink = source, sink
        self.delay_s, self.s_per_byte = delay_s, 8 / rate_bps
        self.queue_s = queue_bytes * self.s_per_byte
        # When the wire has sent all that waits for it.
        self.free_at = 0.0
        self.flying = collections.deque()
        self.counts = {"passed": 0, "dropped": 0, "late_ms_max": 0.0}

    def take(self):
        """Takes what has come. What finds the queue full is lost."""
        while True:
            try:
                packet = os.read(self.source, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            now = time.monotonic()
            free_at = max(self.free_at, now)
            sent_at = free_at + len(packet) * self.s_per_byte
            if sent_at - now > self.queue_s:
                self.counts["dropped"] += 1
                continue
            self.free_at = sent_at
            self.flying.append((sent_at + self.delay_s, packet))

    def deliver(self, now):
        """Delivers what is due. Returns when the next is."""
        flying = self.flying
        while flying:
            due, packet = flying[0]
            if due > now + TOGETHER_S:
                return due
            flying.popleft()
            late_ms = (now - due) * 1e3
            self.counts["late_ms_max"] = max(self.counts["late_ms_max"], late_ms)
            try:
                os.write(self.sink, packet)
                self.counts["passed"] += 1
            except OSError:
                # The device is down, or full.
                self.counts["dropped"] += 1
        return None


def carry(directions):
    sources = [direction.source for direction in directions]
    due = None
    while True:
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select(sources, [], [], wait_s)
        for direction in directions:
            if direction.source in ready:
                direction.take()
        now = time.monotonic()
        nexts = [direction.deliver(now) for direction in directions]
        due = min((next_due for next_due in nexts if next_due is not None), default=None)


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    left, left_device, right, right_device, delay_ms, rate_bps, queue_bytes = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(PermissionError):
        # A link that waits for a core would be another link.
        os.nice(-10)
    tuns = open_tun(left, left_device), open_tun(right, right_device)
    link = float(delay_ms) / 1e3, float(rate_bps), int(queue_bytes)
    directions = [Direction(*tuns, *link), Direction(*reversed(tuns), *link)]
    say("ready")
    began = time.monotonic()
    try:
        carry(directions)
    finally:
        used = os.times()
        cores = (used.user + used.system) / (time.monotonic() - began)
        to_right, to_left = (direction.counts for direction in directions)
        say(json.dumps({"cores": cores, "to_site": to_right, "to_cloud": to_left}))


if __name__ == "__main__":
    main()
