"""Row `small`: files of 1 KiB, one after the other, from the request to the end."""

import contextlib
import filecmp
import time

from fts import Pair
from loopback import Loopback
from peers import Sshd
from programs import Ended, end, run_once, start, wait_for
from settings import SMALL_BYTES, SMALL_SAMPLES

PROGRAMS = ["sshd", "ssh", "scp", "ssh-keygen"]
WARM_UP = 5
SCP_SAMPLES = min(30, SMALL_SAMPLES)


def run(bench):
    small = bench.place.source("small.bin", SMALL_BYTES)
    row = {"bytes": SMALL_BYTES}
    bench.report["rows"]["small"] = row
    print(f"\nsmall: {SMALL_BYTES} bytes, one after the other over one warm connection\n")
    kind = bench.report["machine"]["file_systems"]["disk"]
    for name, landing in (("disk", bench.place.disk), ("memory", bench.place.memory)):
        with contextlib.ExitStack() as stack:
            pair = bench.open(stack, Pair, bench.place, Loopback(), landing / "fts-small")
            samples = pulls(pair, small)
        where = f"{kind}, durable" if name == "disk" else "tmpfs"
        row[name] = told(f"fts, to COMPLETE on {where}", samples)
    if bench.has("scp of small files", *PROGRAMS):
        try:
            row["scp"] = told("scp over a warm ControlMaster", scps(bench, small))
        except Ended as err:
            bench.skip("scp of small files", str(err))
    print()
    bench.at_most("small", "durable, p50", row["disk"]["p50_s"] * 1e3, 10, " ms")
    bench.at_most("small", "durable, p99", row["disk"]["p99_s"] * 1e3, 30, " ms")


def pulls(pair, small):
    for _ in range(WARM_UP):
        transfer = pair.http.download(small, 30)
    same(small, transfer["location"])
    samples = []
    for _ in range(SMALL_SAMPLES):
        began = time.monotonic()
        pair.http.download(small, 30)
        samples.append(time.monotonic() - began)
    return samples


def scps(bench, small):
    target = bench.place.memory / "scp-small.bin"
    # The path of a socket is short.
    socket = bench.place.memory / "ssh"
    with contextlib.ExitStack() as stack:
        sshd = bench.open(stack, Sshd, bench.place, Loopback())
        common = ["-F", sshd.config, "-o", f"ControlPath={socket}"]
        log = bench.place.room("ssh-master") / "err"
        master = start(["ssh", *common, "-o", "ControlMaster=yes", "-N", "bench"], log)
        stack.callback(end, master)
        wait_for("the ssh master is there", master, socket.exists)
        command = ["scp", "-q", *common, small, f"bench:{target}"]
        samples = [run_once(command)[0] for _ in range(WARM_UP + SCP_SAMPLES)][WARM_UP:]
    same(small, target)
    target.unlink()
    return samples


def same(source, landed):
    if not filecmp.cmp(source, landed, shallow=False):
        raise Ended(f"{landed}: other bytes")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def told(what, samples):
    p50, p99 = percentile(samples, 0.50), percentile(samples, 0.99)
    print(f"  {what:40} p50 {p50 * 1e3:6.1f} ms  p99 {p99 * 1e3:6.1f} ms  n {len(samples)}")
    return {"p50_s": p50, "p99_s": p99, "samples_s": samples}
