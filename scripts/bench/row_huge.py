"""Row `huge`: one file of 8 GiB, to see that a rate holds."""

import contextlib
import shutil
import sys

from fts import Fts, Pair
from keeper import Keeper, memory_bytes
from loopback import Loopback
from peers import Cp
from place import SHM, fill
from rounds import measure, print_table, summarise
from settings import GIB, HUGE_BYTES, MIB

PROGRAMS = []
# The source, the landed file, and room to breathe.
NEEDED_BYTES = 2 * HUGE_BYTES + 2 * GIB


def lacks():
    """Why there is no room, or None."""
    if not SHM.is_dir():
        return "no /dev/shm"
    for what, have in (
        ("/dev/shm", shutil.disk_usage(SHM).free),
        ("memory", memory_bytes("MemAvailable")),
    ):
        if have < NEEDED_BYTES:
            return f"{have / GIB:.1f} GiB are free in {what}, and it needs {NEEDED_BYTES / GIB:.0f}"
    return None


def run(bench):
    why = lacks()
    if why is None and not bench.place.on_tmpfs:
        why = "no room in /dev/shm"
    if why:
        bench.skip("huge", why)
        return
    landing = bench.place.memory
    directory = landing / "source"
    directory.mkdir()
    # In memory, where nothing can evict it.
    source = directory / "huge.bin"
    try:
        fill(source, HUGE_BYTES)
        samples = pull(bench, source, landing)
    finally:
        shutil.rmtree(directory)
    tell(bench, samples)


def pull(bench, source, landing):
    samples = {}
    with contextlib.ExitStack() as stack:
        allow = ["--allow", source.parent]
        data_dir = landing / "fts-huge"
        pair = bench.open(stack, Pair, bench.place, Loopback(), data_dir, client_args=allow)
        fts = bench.open(stack, Fts, "fts", pair, [source])
        # The pair's own warming up: it has sent a file before.
        small = bench.place.source("warming.bin", 64 * MIB)
        measure(bench.open(stack, Fts, "warming", pair, [small]), compare=True)
        for contender in (Cp(source, landing), fts):
            with Keeper(HUGE_BYTES):
                sample = measure(contender, compare=False)
            sample["round"] = 0
            samples[contender.name] = [sample]
            rate = HUGE_BYTES / sample["seconds"] / 1e6
            print(f"  {contender.name:10} {rate:7.0f} MB/s", file=sys.stderr)
    return samples


def tell(bench, samples):
    summary = summarise(samples)
    print(f"\nhuge: {HUGE_BYTES // MIB} MiB, from tmpfs to tmpfs, into memory that was kept warm\n")
    print_table(summary)
    bench.report["rows"]["huge"] = {"summary": summary, "samples": samples}
    big = bench.report["rows"].get("big")
    if big is None:
        bench.skip("huge beside big", "the row big was not run")
        return
    for name in ("fts", "cp"):
        share = summary[name]["rate"]["median"] / big["summary"][name]["rate"]["median"]
        what = f"{name}, {HUGE_BYTES // MIB} MiB / its median of big"
        if name == "fts":
            bench.at_least("huge", what, share, 0.9)
        else:
            print(f"  {what:46}{share:>12.3g}   (no goal: what the machine does)")
