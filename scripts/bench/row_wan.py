"""Row `wan`: from a site behind NAT over a long link: how much of it is used, and what else lives.
"""

import contextlib
import datetime
import filecmp
import sys
import time

from fts import CLIENT_ID, Pair, download_target
from netns import Lab, received_bytes, why_not
from peers import RsyncPush, Scp
from place import warm
from programs import Ended
from rounds import measure, spread
from settings import MIB, SLOW_ROUNDS, WAN_BYTES

PROGRAMS = ["ip", "nft", "rsync", "sshd", "scp", "ssh-keygen"]
DELAY_MS = 50
RATE_BPS = 200_000_000
QUEUE_BYTES = 4 * MIB
# The start of a connection is not its rate.
SETTLED_AFTER_S = 3.0
POLL_S = 0.25
GIVE_UP_AFTER_S = 600
HEARTBEAT_S = 2
HEARTBEAT_POLL_S = 0.1
# What a client adds to a heartbeat's pause, at most.
JITTER = 0.2
UPLOADS = 4


def run(bench):
    why = why_not()
    if why:
        bench.skip("wan", why)
        return
    if not bench.has("wan", "ip", "nft"):
        return
    row = {
        "link": {"delay_ms": DELAY_MS, "rate_bps": RATE_BPS, "queue_bytes": QUEUE_BYTES},
        "bytes": WAN_BYTES,
    }
    bench.report["rows"]["wan"] = row
    with contextlib.ExitStack() as stack:
        lab = bench.open(stack, Lab, bench.place, DELAY_MS, RATE_BPS, QUEUE_BYTES)
        row["transfers"] = transfers(bench, lab)
        row["heartbeats"] = heartbeats(bench, lab)
    row["link"]["told"] = lab.told()
    tell(bench, row)


def transfers(bench, lab):
    place, landing = bench.place, bench.place.memory
    source = place.source("wan.bin", WAN_BYTES)
    samples = {}
    with contextlib.ExitStack() as stack:
        peers = []
        if bench.has("rsync push", "rsync"):
            peers += bench.open_peer(stack, RsyncPush, place, lab, source, landing)
        if bench.has("scp over the link", "sshd", "scp", "ssh-keygen"):
            peers += bench.open_peer(stack, Scp, place, lab, source, landing)
        pair = bench.open(stack, Pair, place, lab, landing / "fts-wan")
        for number in range(SLOW_ROUNDS):
            for peer in list(peers):
                warm([source], landing)
                try:
                    sample = measure(peer, compare=number == 0)
                except Ended as err:
                    bench.skip(f"{peer.name} over the link", str(err))
                    peers.remove(peer)
                    continue
                samples.setdefault(peer.name, []).append(sample)
            warm([source], landing)
            samples.setdefault("fts", []).append(watched(pair, source))
            said = [f"{name} {runs[-1]['seconds']:.1f} s" for name, runs in samples.items()]
            print(f"  round {number + 1}: {', '.join(said)}", file=sys.stderr)
    return samples


def watched(pair, source):
    """One transfer, with its progress. Its time is from its request to its end, by the record."""
    began = time.monotonic()
    transfer = pair.http.must("POST", download_target(source, 0))
    target = f"/transfers/{transfer['id']}"
    points = []
    while "end_time" not in transfer:
        if time.monotonic() - began > GIVE_UP_AFTER_S:
            raise Ended(f"waited in vain for {transfer}")
        time.sleep(POLL_S)
        on_link = received_bytes(pair.server.pid, "wan")
        at_s = time.monotonic() - began
        transfer = pair.http.must("GET", target)
        points.append([at_s, transfer["done_bytes"], on_link])
    if not transfer["state"].endswith("COMPLETE"):
        raise Ended(f"{transfer}")
    if not filecmp.cmp(source, transfer["location"], shallow=False):
        raise Ended("fts delivered other bytes over the link")
    pair.http.must("DELETE", target)
    seconds = (instant(transfer["end_time"]) - instant(transfer["create_time"])).total_seconds()
    return {"seconds": seconds, **shares(points, source.stat().st_size), "points": points}


def shares(points, size_bytes):
    """What was used of the link once the transfer had settled, and before its end."""
    settled = [p for p in points if p[0] >= SETTLED_AFTER_S and p[1] < size_bytes]
    if len(settled) < 2:
        return {"share": None, "share_on_link": None}
    (began, done_before, link_before), (ended, done, link) = settled[0], settled[-1]
    most = RATE_BPS / 8 * (ended - began)
    return {"share": (done - done_before) / most, "share_on_link": (link - link_before) / most}


def instant(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def heartbeats(bench, lab):
    """When heartbeats came while four uploads filled the link: by the server's `last_seen`."""
    sources = [bench.place.source(f"wan-{n}.bin", WAN_BYTES) for n in range(UPLOADS)]
    with contextlib.ExitStack() as stack:
        options = {"server_args": ["--heartbeat", f"{HEARTBEAT_S}s"]}
        data_dir = bench.place.memory / "fts-heartbeats"
        pair = bench.open(stack, Pair, bench.place, lab, data_dir, **options)
        began = time.monotonic()
        link_before = received_bytes(pair.server.pid, "wan")
        asked = [pair.http.must("POST", download_target(source, 0)) for source in sources]
        targets = [f"/transfers/{transfer['id']}" for transfer in asked]
        # Until the first ends: then there are fewer than four, and the client has more to say.
        seen, presences = look(pair.http, lambda: any(ended(pair.http, t) for t in targets))
        seconds = time.monotonic() - began
        on_link = received_bytes(pair.server.pid, "wan") - link_before
        look(pair.http, lambda: all(ended(pair.http, t) for t in targets))
        for target in targets:
            pair.http.must("DELETE", target)
    gaps = [after - before for before, after in zip(seen, seen[1:])]
    return {
        "interval_s": HEARTBEAT_S,
        "uploads": UPLOADS,
        "seconds": seconds,
        "share_on_link": on_link * 8 / RATE_BPS / seconds,
        "presences": presences,
        "gaps_s": gaps,
    }


def look(http, is_over):
    """Looks at the client until something is over. Returns when it was seen, and its presences."""
    began = checked_at = time.monotonic()
    seen, presences = [], set()
    while True:
        client = http.must("GET", f"/clients/{CLIENT_ID}")
        presences.add(client["presence"])
        last = instant(client["last_seen"]).timestamp()
        if not seen or last != seen[-1]:
            seen.append(last)
        # Transfers are looked at less often, so that the server has little to do with us.
        if time.monotonic() - checked_at > 1:
            checked_at = time.monotonic()
            if is_over():
                # The last gap is at least as long as until now.
                return [*seen, time.time()], sorted(presences)
        if time.monotonic() - began > GIVE_UP_AFTER_S:
            raise Ended(f"{UPLOADS} uploads did not end")
        time.sleep(HEARTBEAT_POLL_S)


def ended(http, target):
    transfer = http.must("GET", target)
    if "end_time" in transfer and not transfer["state"].endswith("COMPLETE"):
        raise Ended(f"{transfer}")
    return "end_time" in transfer


def tell(bench, row):
    size = WAN_BYTES // MIB
    print(f"\nwan: {size} MiB from behind NAT over {RATE_BPS / 1e6:.0f} Mbit/s, {DELAY_MS} ms each")
    print(f"way, queue {QUEUE_BYTES // MIB} MiB; medians of {SLOW_ROUNDS} rounds in turn\n")
    runs = row["transfers"]
    for name, samples in runs.items():
        seconds = spread([sample["seconds"] for sample in samples])
        mean = WAN_BYTES * 8 / RATE_BPS / seconds["median"]
        print(f"  {name:12} {seconds['median']:6.1f} s", end=" ")
        print(f"({seconds['min']:.1f}-{seconds['max']:.1f}), {mean:.2f} of the link from the start")
    told = row["link"]["told"]
    if told:
        print(f"  the link took {told['cores']:.2f} cores; on its way to the cloud", end=" ")
        to_cloud = told["to_cloud"]
        print(f"{to_cloud['dropped']} of {to_cloud['passed']} packets found its queue full")
    beats = row["heartbeats"]
    gaps = beats["gaps_s"]
    print(f"  {len(gaps)} gaps between heartbeats of {HEARTBEAT_S} s, while", end=" ")
    print(f"{UPLOADS} uploads used {beats['share_on_link']:.2f} of the link;", end=" ")
    print(f"presence {', '.join(beats['presences'])}\n")
    settled = [s for s in runs["fts"] if s["share"] is not None]
    if settled:
        share = spread([sample["share"] for sample in settled])["median"]
        on_link = spread([sample["share_on_link"] for sample in settled])["median"]
        bench.at_least("wan", f"payload / link, from {SETTLED_AFTER_S:.0f} s on", share, 0.9)
        print(f"  {'(with headers and all)':46}{on_link:>12.3g}")
    else:
        bench.skip("wan: share of the link", f"{size} MiB took too little time")
    if len(gaps) >= 3:
        late = max(0.0, max(gaps) - HEARTBEAT_S * (1 + JITTER)) / HEARTBEAT_S
        bench.at_most("wan", "heartbeat, latest beyond its plan / interval", late, 0.25)
    else:
        bench.skip("wan: heartbeats", f"only {len(gaps)} gaps in {beats['seconds']:.0f} s")
