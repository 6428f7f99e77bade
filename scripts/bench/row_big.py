"""Row `big`: one large file, from the page cache to tmpfs; and two at once."""

import contextlib
import json
import subprocess

from fts import Fts, Pair
from loopback import Loopback
from peers import Cp, NginxPut, RsyncPull, Scp
from programs import Ended, end, start, wait_for
from rounds import in_turn, print_table, ratios, spread, summarise
from settings import MIB, ROUNDS, SIZE_BYTES

PROGRAMS = ["rsync", "nginx", "curl", "sshd", "scp", "ssh-keygen", "iperf3"]
IPERF_S = 3


def contenders(bench, stack):
    place, net, landing = bench.place, Loopback(), bench.place.memory
    big = place.source("big.bin", SIZE_BYTES)
    halves = [place.source(f"half-{number}.bin", SIZE_BYTES // 2) for number in (1, 2)]
    found = [Cp(big, landing)]
    if bench.has("rsync pull", "rsync"):
        found += bench.open_peer(stack, RsyncPull, place, net, big, landing)
    if bench.has("nginx PUT", "nginx", "curl"):
        found += bench.open_peer(stack, NginxPut, place, net, big, landing)
    if bench.has("scp", "sshd", "scp", "ssh-keygen"):
        found += bench.open_peer(stack, Scp, place, net, big, landing)
    pair = bench.open(stack, Pair, place, net, landing / "fts")
    found.append(bench.open(stack, Fts, "fts", pair, [big]))
    found.append(bench.open(stack, Fts, "fts x2", pair, halves))
    return found


def run(bench):
    if not bench.place.on_tmpfs:
        bench.skip("tmpfs", "no room in /dev/shm: rows into memory go to disk instead")
    with contextlib.ExitStack() as stack:
        samples = in_turn(bench, contenders(bench, stack), ROUNDS, bench.place.memory)
    summary = summarise(samples)
    print(f"\nbig: {SIZE_BYTES // MIB} MiB, page cache to tmpfs; medians of rounds in turn.")
    print("client: the end that has the file; server: the end that wants it; cp is one process;")
    print("x2: two files of half the size at once, their sum over the wall time; MiB: peak memory")
    print()
    print_table(summary)
    row = {"summary": summary, "samples": samples}
    bench.report["rows"]["big"] = row
    row["loopback_bytes_per_s"] = iperf(bench)
    check(bench, samples, summary)


def check(bench, samples, summary):
    of_cp = spread(ratios(samples, "fts", "cp"))["median"]
    plain = [name for name in ("nginx PUT", "rsync pull") if name in samples]
    if plain:
        faster = max(plain, key=lambda name: summary[name]["rate"]["median"])
        for name, bound in (("fts", 0.9), ("fts x2", 1.0)):
            share = spread(ratios(samples, name, faster))["median"]
            bench.at_least("big", f"{name} / {faster} (the faster)", share, bound)
    if "scp" in samples:
        share = spread(ratios(samples, "fts", "scp"))["median"]
        bench.at_least("big", "fts / scp", share, 4.0)
    bench.at_least("big", "fts / cp", of_cp, 0.5)
    for name, uploads in (("fts", 1), ("fts x2", 2)):
        client, server = summary[name]["client"], summary[name]["server"]
        bench.at_most("big", f"{name}: client, peak", client["peak_bytes"]["max"] / MIB, 40, " MiB")
        bound = 48 + 16 * uploads
        peak = server["peak_bytes"]["max"] / MIB
        bench.at_most("big", f"{name}: server, peak", peak, bound, " MiB")
    client, server = (summary["fts"][side]["cpu_s_per_gib"] for side in ("client", "server"))
    bench.at_most("big", "fts: client, CPU", client["median"], 0.65, " s/GiB")
    bench.at_most("big", "fts: server, CPU", server["median"], 1.0, " s/GiB")


def iperf(bench):
    """What loopback TCP carries in one stream, for comparison."""
    if not bench.has("iperf3", "iperf3"):
        return None
    try:
        rate = iperf_rate(bench.place.room("iperf3"), Loopback())
    except Ended as err:
        bench.skip("iperf3", str(err))
        return None
    print(f"  iperf3, one stream over loopback, for comparison: {rate / 1e6:.0f} MB/s")
    return rate


def iperf_rate(work, net):
    port, log = net.free_port(), work / "log"
    command = ["iperf3", "-s", "-B", net.host, "-p", port, "--forceflush", "--logfile", log]
    server = start(command, work / "err")
    try:
        # Not by dialling it: it would take that for a test.
        wait_for("iperf3 listens", server, lambda: log.exists() and "listening" in log.read_text())
        command = ["iperf3", "-c", net.host, "-p", str(port), "-t", str(IPERF_S), "-J"]
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        end(server)
    answer = json.loads(done.stdout or "{}")
    if done.returncode != 0 or "error" in answer:
        raise Ended(f"failed with {done.returncode}: {answer.get('error', done.stderr)}")
    return answer["end"]["sum_received"]["bits_per_second"] / 8
