"""Runs contenders in turn, and says what came of it: medians, ratios in pairs, costs."""

import filecmp
import statistics
import sys

from place import settle, warm
from programs import Ended
from settings import GIB, MIB

SIDES = ("client", "server")


def in_turn(bench, contenders, rounds, landing, durable=False):
    """Each contender in each round, so that a slow minute hits all of them. Returns samples."""
    samples = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        # No one always follows the same other.
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            if contender.rounds_max is not None and number >= contender.rounds_max:
                continue
            warm(contender.sources, landing)
            if durable:
                settle(landing)
            try:
                sample = measure(contender, compare=number == 0)
            except Ended as err:
                if contender.is_needed:
                    raise
                bench.skip(contender.name, f"round {number + 1}: {err}")
                contenders = [other for other in contenders if other is not contender]
                continue
            sample["round"] = number
            samples[contender.name].append(sample)
            rate = sample["bytes"] / sample["seconds"] / 1e6
            print(f"  round {number + 1}: {contender.name:10} {rate:7.0f} MB/s", file=sys.stderr)
    return {name: runs for name, runs in samples.items() if runs}


def measure(contender, compare):
    """One run. What landed is removed, whatever became of it."""
    seconds, ends = contender.pull()
    size_bytes = sum(path.stat().st_size for path in contender.sources)
    if compare:
        for source, landed in zip(contender.sources, contender.landed()):
            if not filecmp.cmp(source, landed, shallow=False):
                raise Ended(f"{contender.name} delivered other bytes")
    contender.forget()
    return {"seconds": seconds, "bytes": size_bytes, "ends": ends}


def rates(runs):
    return [run["bytes"] / run["seconds"] for run in runs]


def ratios(samples, name, other):
    """The rate of one as a share of the other's, in each round that both ran."""
    by_round = {run["round"]: rate for run, rate in zip(samples[other], rates(samples[other]))}
    pairs = zip(samples[name], rates(samples[name]))
    return [rate / by_round[run["round"]] for run, rate in pairs if run["round"] in by_round]


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def of_ends(runs, side, field):
    values = [run["ends"].get(side, {}).get(field) for run in runs]
    return [value for value in values if value is not None]


def summarise(samples, subject="fts"):
    """For each contender: its rate, what it is of cp's, what the subject is of it, its costs."""
    bound = next(iter(samples))
    summary = {}
    for name, runs in samples.items():
        row = {"runs": len(runs), "rate": spread(rates(runs))}
        row["of_bound"] = spread(ratios(samples, name, bound))
        row["subject_of_it"] = spread(ratios(samples, subject, name))
        for side in SIDES:
            peaks = of_ends(runs, side, "peak_bytes")
            pairs = zip(runs, of_ends(runs, side, "cpu_s"))
            cpu = [cpu_s / (run["bytes"] / GIB) for run, cpu_s in pairs]
            row[side] = {
                "cpu_s_per_gib": spread(cpu) if cpu else None,
                "peak_bytes": spread(peaks) if peaks else None,
            }
        summary[name] = row
    return summary


def print_table(summary, subject="fts"):
    bound = next(iter(summary))
    head = ["", "n", "MB/s", "min-max", f"of {bound}", f"{subject} is, of it", "min-max"]
    for side in SIDES:
        head += [f"{side} CPU s/GiB", "MiB"]
    lines = [head]
    for name, row in summary.items():
        of_it = row["subject_of_it"]
        line = [name, str(row["runs"]), f"{row['rate']['median'] / 1e6:.0f}"]
        line += [f"{row['rate']['min'] / 1e6:.0f}-{row['rate']['max'] / 1e6:.0f}"]
        line += [f"{row['of_bound']['median']:.2f}", f"{of_it['median']:.2f}"]
        line += [f"{of_it['min']:.2f}-{of_it['max']:.2f}"]
        for side in SIDES:
            cpu, peak = row[side]["cpu_s_per_gib"], row[side]["peak_bytes"]
            line += ["-" if cpu is None else f"{cpu['median']:.2f}"]
            line += ["-" if peak is None else f"{peak['max'] / MIB:.0f}"]
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        print("  ".join(cells))
    print()
