"""Row `many`: thousands of small files of one client, many requests at once, durable."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

from cost import Tree
from fts import Pair, download_target, uploads_flag
from loopback import Loopback
from place import settle
from programs import Ended
from rounds import spread
from settings import KIB, MANY_BYTES, MANY_CONNECTIONS, MANY_FILES, SLOW_ROUNDS

PROGRAMS = []
UPLOADS = 64
LOAD = pathlib.Path(__file__).with_name("load.py")


def run(bench):
    place = bench.place
    directory = place.sources / "many"
    directory.mkdir(exist_ok=True)
    paths = [place.source(f"many/{number}.bin", MANY_BYTES) for number in range(MANY_FILES)]
    flag = uploads_flag(place)
    kinds = {"as it comes": [], f"{flag} {UPLOADS}": [flag, str(UPLOADS)]}
    samples = {kind: [] for kind in kinds}
    for number in range(SLOW_ROUNDS):
        for kind, client_args in kinds.items():
            data_dir = place.disk / f"fts-many-{number}-{len(client_args)}"
            settle(place.disk)
            with contextlib.ExitStack() as stack:
                options = {"client_args": client_args}
                pair = bench.open(stack, Pair, place, Loopback(), data_dir, **options)
                sample = load(pair, paths)
            samples[kind].append(sample)
            print(f"  round {number + 1}: {kind}: {sample['rate']:.0f}/s", file=sys.stderr)
    tell(bench, samples)


def load(pair, paths):
    """Asks for all the files, and looks at each that landed."""
    order = {
        "host": pair.net.host,
        "port": pair.port,
        "targets": [download_target(path, 60) for path in paths],
        "connections": MANY_CONNECTIONS,
    }
    with Tree(pair.server.pid) as server, Tree(pair.client.pid) as client:
        command = [sys.executable, LOAD]
        done = subprocess.run(
            command, input=json.dumps(order), stdout=subprocess.PIPE, text=True
        )
    if done.returncode != 0:
        raise Ended(f"the load generator failed with {done.returncode}")
    outcome = json.loads(done.stdout)
    landed = set()
    for status, _, body in outcome["answers"]:
        transfer = json.loads(body)
        if status != 200 or not transfer["state"].endswith("COMPLETE"):
            raise Ended(f"{status}: {transfer}")
        if pathlib.Path(transfer["path"]).read_bytes() != read(transfer["location"]):
            raise Ended(f"{transfer['location']}: other bytes")
        landed.add(transfer["path"])
    if landed != {str(path) for path in paths}:
        raise Ended(f"{len(landed)} of {len(paths)} files landed")
    return {
        "rate": len(paths) / outcome["seconds"],
        "seconds": outcome["seconds"],
        "generator_cpu_s": outcome["cpu_s"],
        "client": client.cost,
        "server": server.cost,
        "latencies_s": [seconds for _, seconds, _ in outcome["answers"]],
    }


def read(path):
    return pathlib.Path(path).read_bytes()


def tell(bench, samples):
    print(f"\nmany: {MANY_FILES} files of {MANY_BYTES // KIB} KiB of one client, durable,", end=" ")
    print(f"{MANY_CONNECTIONS} requests at a time; medians of {SLOW_ROUNDS} rounds in turn\n")
    row = {"files": MANY_FILES, "bytes": MANY_BYTES, "samples": samples, "summary": {}}
    bench.report["rows"]["many"] = row
    for kind, runs in samples.items():
        rate = spread([run["rate"] for run in runs])
        share = spread([run["generator_cpu_s"] / run["seconds"] for run in runs])
        row["summary"][kind] = {"rate": rate, "generator_cores": share}
        print(f"  {kind:20} {rate['median']:6.0f}/s", end=" ")
        print(f"({rate['min']:.0f}-{rate['max']:.0f});", end=" ")
        cores = [
            spread([run[side]["cpu_s"] / run["seconds"] for run in runs])["median"]
            for side in ("client", "server")
        ]
        print(f"cores: client {cores[0]:.2f}, server {cores[1]:.2f},", end=" ")
        print(f"load generator {share['median']:.2f}")
        if share["max"] > 0.8:
            print(f"  {kind}: THE LOAD GENERATOR IS THE LIMIT: it had no core to spare")
        elif sum(cores) + share["median"] > 0.9 * os.cpu_count():
            print(f"  {kind}: the machine is the limit, of which the load generator took a part")
    print()
    for kind in samples:
        rate = row["summary"][kind]["rate"]["median"]
        bench.at_least("many", f"transfers, {kind}", rate, 500, "/s")
