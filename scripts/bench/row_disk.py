"""Row `disk`: one large file, from the page cache to stable storage."""

import contextlib
import subprocess

from fts import Fts, Pair
from loopback import Loopback
from peers import CpSync, RsyncPull
from rounds import in_turn, print_table, ratios, spread, summarise
from settings import MIB, ROUNDS, SIZE_BYTES

PROGRAMS = ["rsync"]


def rsync_syncs():
    command = ["rsync", "--help"]
    return "--fsync" in subprocess.run(command, capture_output=True, text=True).stdout


def run(bench):
    place, net, landing = bench.place, Loopback(), bench.place.disk
    big = place.source("big.bin", SIZE_BYTES)
    kind = bench.report["machine"]["file_systems"]["disk"]
    with contextlib.ExitStack() as stack:
        contenders = [CpSync(big, landing)]
        if bench.has("rsync --fsync", "rsync"):
            if rsync_syncs():
                pull = (RsyncPull, place, net, big, landing, ["--fsync"])
                contenders += bench.open_peer(stack, *pull)
            else:
                bench.skip("rsync --fsync", "this rsync is too old for it")
        pair = bench.open(stack, Pair, place, net, landing / "fts")
        contenders.append(bench.open(stack, Fts, "fts", pair, [big]))
        samples = in_turn(bench, contenders, ROUNDS, landing, durable=True)
    summary = summarise(samples)
    print(f"\ndisk: {SIZE_BYTES // MIB} MiB, page cache to {kind}, until it is on stable storage")
    print("(COMPLETE; cp and sync of the file; rsync --fsync); medians of rounds in turn\n")
    print_table(summary)
    bench.report["rows"]["disk"] = {"summary": summary, "samples": samples}
    share = spread(ratios(samples, "fts", "cp+sync"))["median"]
    bench.at_least("disk", "fts / (cp && sync)", share, 0.7)
    if kind in ("tmpfs", "ramfs", "overlayfs"):
        bench.skip("a disk", f"the build directory is on {kind}, so these rows say little")
