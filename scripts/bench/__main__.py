"""Measures fts beside the programs that people use instead, in one run on one machine.

Each row (row_*.py) says what it measures. Big files start from memory that has just been touched,
because a virtual machine needs seconds to get a fresh GiB. Contenders run in turn, with a cp of the
same size among them, and are compared in pairs of the same round.

Tables go to standard output; every sample, the machine, the versions, and what was left out and
why, to target/bench/*.json. A missed goal is said, and is no failure. Linux only.

    ROWS=big,disk ROUNDS=10 SIZE_MIB=1024 python3 scripts/bench target

INSTALL=0 leaves out the peers that are not here, instead of installing them.
"""

import contextlib
import pathlib
import signal
import sys

import row_big
import row_disk
import row_huge
import row_many
import row_small
import row_tls
import row_wan
from bench import Bench
from place import Place
from programs import Ended
from settings import chosen_rows
from tools import Tools

ROWS = {
    "big": row_big,
    "huge": row_huge,
    "tls": row_tls,
    "disk": row_disk,
    "small": row_small,
    "many": row_many,
    "wan": row_wan,
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt(number, _):
    # Once: what ends the others is not interrupted.
    deaf()
    raise KeyboardInterrupt(signal.Signals(number).name)


def deaf():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def measure(bench, rows):
    """Returns whether all of it was measured, and where that is written."""
    whole = False
    try:
        for name in rows:
            print(f"bench: {name}", file=sys.stderr)
            ROWS[name].run(bench)
        whole = True
    except Ended as err:
        print(f"bench: {err}", file=sys.stderr)
    except KeyboardInterrupt as err:
        print(f"bench: interrupted by {err}", file=sys.stderr)
    finally:
        deaf()
        path = bench.write(whole)
    return whole, path


def tell_end(bench, path):
    print()
    for skipped in bench.skipped:
        print(f"SKIPPED: {skipped['what']}: {skipped['why']}")
    missed = bench.goals.missed()
    print(f"goals: {len(bench.goals.all) - len(missed)} met, {len(missed)} missed")
    for goal in missed:
        print(f"  MISSED: {goal['row']}: {goal['what']}: {goal['figure']:.3g}, not {goal['goal']}")
    print(f"every sample: {path}")


def main():
    rows = chosen_rows(ROWS)
    sys.stdout.reconfigure(line_buffering=True)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    tools = Tools()
    with contextlib.ExitStack() as stack:
        tools.install({program for name in rows for program in ROWS[name].PROGRAMS})
        place = Place(pathlib.Path(sys.argv[1]).resolve())
        stack.callback(place.close)
        bench = Bench(place, tools)
        whole, path = measure(bench, rows)
    tell_end(bench, path)
    if not whole:
        sys.exit("bench: NOT ALL OF IT WAS MEASURED")


if __name__ == "__main__":
    main()
