"""One run of the benchmark: what every row is given, and where it leaves what it found."""

import json
import os
import sys
import time

import machine
from goals import Goals
from programs import Ended
from settings import ROUNDS


class Bench:
    def __init__(self, place, tools):
        self.place = place
        self.tools = tools
        self.goals = Goals()
        self.skipped = []
        self.report = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine.machine(place),
            "versions": machine.versions(place),
            "rounds": ROUNDS,
            "rows": {},
        }

    def skip(self, what, why):
        print(f"bench: SKIPPED: {what}: {why}", file=sys.stderr)
        self.skipped.append({"what": what, "why": why})

    def has(self, what, *programs):
        """Whether a part of a row can run; if not, that is said."""
        missing = [program for program in programs if not self.tools.path(program)]
        if missing:
            self.skip(what, f"needs {', '.join(missing)}{self.tools.why_missing()}")
        return not missing

    def open(self, stack, make, *args, **options):
        """A contender, which ends with the stack."""
        made = make(*args, **options)
        stack.callback(made.close)
        return made

    def open_peer(self, stack, make, *args, **options):
        """The same of a peer, in a list; none if it does not start."""
        try:
            return [self.open(stack, make, *args, **options)]
        except Ended as err:
            self.skip(make.name, str(err))
            return []

    def at_least(self, row, what, figure, bound, unit=""):
        print(self.goals.at_least(row, what, figure, bound, unit))

    def at_most(self, row, what, figure, bound, unit=""):
        print(self.goals.at_most(row, what, figure, bound, unit))

    def write(self, is_whole):
        self.report.update(
            whole=is_whole,
            load_at_end=os.getloadavg(),
            goals=self.goals.all,
            skipped=self.skipped,
        )
        results = self.place.target / "bench"
        results.mkdir(exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = results / f"{stamp}-{os.getpid()}.json"
        path.write_text(json.dumps(self.report, indent=1) + "\n")
        return path
