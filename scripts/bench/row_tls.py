"""Row `tls`: one large file over TLS, from the page cache to tmpfs."""

import contextlib

from fts import Access, Fts, Pair
from loopback import Loopback
from peers import Cp, NginxPut
from rounds import in_turn, print_table, ratios, spread, summarise
from settings import MIB, ROUNDS, SIZE_BYTES

PROGRAMS = ["nginx", "curl"]


def run(bench):
    place, net, landing = bench.place, Loopback(), bench.place.memory
    big = place.source("big.bin", SIZE_BYTES)
    with contextlib.ExitStack() as stack:
        access = Access(place, landing / "fts-tls")
        contenders = [Cp(big, landing)]
        if bench.has("nginx PUT over TLS", "nginx", "curl"):
            pki = access.data_dir / "pki"
            contenders += bench.open_peer(stack, NginxPut, place, net, big, landing, pki=pki)
        pair = bench.open(stack, Pair, place, net, access.data_dir, access=access)
        contenders.append(bench.open(stack, Fts, "fts", pair, [big]))
        samples = in_turn(bench, contenders, ROUNDS, landing)
    summary = summarise(samples)
    print(f"\ntls: {SIZE_BYTES // MIB} MiB over TLS 1.3, page cache to tmpfs; medians of rounds in turn.")
    print("nginx shows the certificate that the server of fts shows; cp speaks no TLS\n")
    print_table(summary)
    bench.report["rows"]["tls"] = {"summary": summary, "samples": samples}
    if "nginx PUT" in samples:
        share = spread(ratios(samples, "fts", "nginx PUT"))["median"]
        bench.at_least("tls", "fts / (curl -T to nginx over TLS)", share, 1.0)
