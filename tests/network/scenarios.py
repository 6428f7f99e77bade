#!/usr/bin/env python3
"""What happens between a server and a client behind a NAT, and must end well. As root.

    scenarios.py [--bin DIR] [--seed N] [--keep] [--list] [--sample | NAME…]

Without names all of them run, some at a time: they mostly wait. The first are of a server that asks
for TLS and credentials (`secured_scenarios.py`). `--bin` is where the programs are.
Each says how many seconds after mending the client delivered again.
"""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import rig
import secured_scenarios
from pair import BACK_S, CLIENT_SILENCE, SMALL_BYTES, Pair
from rig import Failed
from secured import tool

# The deadlines of sessions scale with it.
HEARTBEAT_S = 1
# A session that a deadline ends is back after a pause and a dial. Dials that fail wait longer, but
# by then a dial or two have failed: see the pauses in src/limits.rs.
SESSION_BACK_S = 15
FEW_DIALS_S = 35
DIRECTIONS = ("to-server", "to-client", "both")
# They mostly wait, but each has two programs, on a machine that may have two cores.
AT_A_TIME = 17
# The status of a run on a machine that lacks something.
NEEDS = 3


@dataclasses.dataclass
class Scenario:
    play: object
    heartbeat_s: float = HEARTBEAT_S
    nat: dict = dataclasses.field(default_factory=dict)
    # In the sample, which CI runs.
    sampled: bool = True
    pair: object = Pair
    # Programs that a machine may lack.
    needs: tuple = ()


# --- An idle mapping expires ---


class Witness:
    """A connection through the NAT that says nothing: it proves that the mapping expires."""

    def __init__(self, pair):
        with rig.inside(pair.rig.cloud), socket.create_server((rig.CLOUD, 0)) as listener:
            self.site = pair.rig.connect(pair.rig.site, listener.getsockname()[1])
            self.cloud, _ = listener.accept()

    def is_cut_off(self):
        self.site.sendall(b"?")
        self.cloud.settimeout(3)
        try:
            self.cloud.recv(1)
        except TimeoutError:
            return True
        finally:
            self.site.close()
            self.cloud.close()
        return False


def expiry_slower_than_heartbeats(pair):
    """Heartbeats keep a mapping that would expire a dozen times."""
    witness = Witness(pair)
    time.sleep(60)
    if not witness.is_cut_off():
        raise Failed("the mapping of a silent connection did not expire: this proves nothing")
    if pair.sessions() != 1:
        raise Failed(f"the session was lost: there were {pair.sessions()}")
    pair.recovers(lambda: None, within_s=SESSION_BACK_S)


def expiry_faster_than_heartbeats(pair):
    """Sessions are lost again and again, and commands with them; each is delivered all the same."""
    for _ in range(8):
        began = time.monotonic()
        pair.trigger()
        time.sleep(5)
    for transfer in pair.asked:
        pair.complete(transfer, BACK_S, began)
    pair.measured["last delivered"] = time.monotonic() - began
    pair.measured["sessions"] = pair.sessions()
    if pair.sessions() < 3:
        raise Failed("no mapping expired: this proves nothing")


# --- What a router does ---


def router(event, uploading, pair):
    """The router reboots, or has another address: what was connected is dead, and not told so."""
    upload = pair.upload() if uploading else None
    is_slow = pair.heartbeat_s > HEARTBEAT_S
    pair.recovers(getattr(pair.rig, event), upload, BACK_S if is_slow else SESSION_BACK_S)
    if pair.sessions() != 2:
        raise Failed(f"there were {pair.sessions()} sessions: the old one was to be lost, only it")


# --- The line is cut ---


def cut(direction, seconds, uploading, pair):
    """Both ends notice in time that the line is cut, and the client is back when it is mended."""
    upload = pair.upload() if uploading else None
    pair.rig.cut(direction)
    cut_at = time.monotonic()
    if seconds > CLIENT_SILENCE * pair.heartbeat_s:
        pair.is_missed(cut_at)
    time.sleep(max(0, cut_at + seconds - time.monotonic()))
    is_slow = seconds > FEW_DIALS_S
    pair.recovers(pair.rig.mend, upload, BACK_S if is_slow else SESSION_BACK_S)


def commands_over_cuts(pair):
    """Files are asked for while the line comes and goes: each is delivered, and once."""
    dice = random.Random(pair.seed)
    pair.measured["seed"] = pair.seed
    end = time.monotonic() + 40
    while time.monotonic() < end:
        a_while_with_commands(pair, dice, 1.5)
        pair.rig.cut(dice.choice(DIRECTIONS))
        a_while_with_commands(pair, dice, 1.5)
        pair.rig.mend()
    # At least one that costs the session, with a command that is sent into it.
    pair.recovers(lambda: None)
    pair.rig.cut(dice.choice(DIRECTIONS))
    cut_at = time.monotonic()
    pair.trigger()
    pair.is_missed(cut_at)
    mended_at = time.monotonic()
    pair.recovers(pair.rig.mend)
    for transfer in pair.asked:
        pair.complete(transfer, BACK_S, mended_at)
    pair.measured["commands"] = len(pair.asked)
    pair.measured["all delivered"] = time.monotonic() - mended_at
    pair.measured["sessions"] = pair.sessions()


def a_while_with_commands(pair, dice, pause_s_max):
    for _ in range(dice.randrange(4)):
        pair.trigger(dice.choice(SMALL_BYTES))
        time.sleep(dice.uniform(0, pause_s_max))


def server_restarts_behind_a_cut(how, pair):
    """Meanwhile the client's machine moves, and so does its router."""
    upload = pair.upload()
    waiting = pair.trigger()
    pair.rig.cut("both")
    cut_at = time.monotonic()
    pair.server.end(how)
    pair.rig.change_site_address()
    pair.rig.change_outside_address()
    time.sleep(5)
    pair.start_server()
    mended_at = time.monotonic()
    # A server that is told to stop takes its time. Nothing of what there was is waited for.
    within_s = BACK_S if mended_at - cut_at > FEW_DIALS_S else SESSION_BACK_S
    pair.recovers(pair.rig.mend, upload, within_s, within_s)
    pair.complete(waiting, BACK_S, mended_at)


# --- All of them ---


def scenarios():
    secured = secured_scenarios.plays().items()
    found = {name: Scenario(play, pair=made, needs=needs) for name, (play, made, needs) in secured}
    found |= {
        "expiry-slower-than-heartbeats": Scenario(
            expiry_slower_than_heartbeats, heartbeat_s=2, nat={"established_s": 5}
        ),
        "expiry-faster-than-heartbeats": Scenario(
            expiry_faster_than_heartbeats, heartbeat_s=6, nat={"established_s": 3}
        ),
        "commands-over-cuts": Scenario(commands_over_cuts),
    }
    for how in (signal.SIGKILL, signal.SIGTERM):
        name = f"server-restarts-behind-a-cut-{how.name.lower()}"
        play = functools.partial(server_restarts_behind_a_cut, how)
        found[name] = Scenario(play, sampled=how == signal.SIGKILL)
    for what, event in (("reboot", "forget"), ("address", "change_outside_address")):
        for uploading in (False, True):
            name = f"router-{what}-{'upload' if uploading else 'idle'}"
            found[name] = Scenario(functools.partial(router, event, uploading))
    found["router-reboot-idle-default-heartbeat"] = Scenario(
        functools.partial(router, "forget", False), heartbeat_s=25
    )
    # Around both deadlines of a session, that of a dial, and that of the kernel.
    sampled = {("to-server", 4), ("to-client", 4), ("both", 12), ("both", 35)}
    for direction in DIRECTIONS:
        for seconds in (1, 2.5, 4, 12, 35, 65):
            for uploading in (False, True):
                name = f"cut-{direction}-{seconds}s-{'upload' if uploading else 'idle'}"
                play = functools.partial(cut, direction, seconds, uploading)
                found[name] = Scenario(play, sampled=(direction, seconds) in sampled)
    return found


def play(name, scenario, args):
    """Plays one in this process; returns whether it ended well."""
    began = time.monotonic()
    place = tempfile.mkdtemp(prefix=f"fts-{name}-")
    measured = {}
    try:
        if not all(tool(name, each) for each in scenario.needs):
            shutil.rmtree(place)
            return True
        pair = scenario.pair(place, args.bin.resolve(), scenario.heartbeat_s, **scenario.nat)
        pair.seed, pair.measured = args.seed, measured
        with contextlib.closing(pair):
            scenario.play(pair)
            pair.holds()
    except SystemExit:
        shutil.rmtree(place)
        raise
    except Exception as err:
        told = str(err) if isinstance(err, Failed) else traceback.format_exc()
        print(f"FAILED {name}: {told} (logs: {place}; {words(measured)})", flush=True)
        return False
    if not args.keep:
        shutil.rmtree(place)
    took = time.monotonic() - began
    print(f"ok     {name}: {words(measured)} ({took:.0f} s in all)", flush=True)
    return True


def words(measured):
    as_text = lambda value: f"{value:.1f}" if isinstance(value, float) else str(value)
    return ", ".join(f"{name} {as_text(value)}" for name, value in measured.items())


def play_all(names, args):
    """Plays each in a process of its own: a network belongs to one. Returns which failed."""
    waiting, running, failed = list(names), {}, []
    command = [sys.executable, __file__, "--bin", args.bin, "--seed", str(args.seed)]
    command += ["--keep"] if args.keep else []
    try:
        while waiting or running:
            while waiting and len(running) < AT_A_TIME:
                name = waiting.pop(0)
                running[name] = subprocess.Popen([*command, name])
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [name] if process.returncode else []
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def interrupted(number, _frame):
    # Whoever is impatient must not keep the clean-up from its work.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(f"ended by {signal.Signals(number).name}")


def main():
    known = scenarios()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/debug"))
    parser.add_argument("--sample", action="store_true", help="those that CI runs")
    parser.add_argument("--list", action="store_true", help="only say their names")
    parser.add_argument("--keep", action="store_true", help="keep the logs of those that end well")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if there is none")
    args = parser.parse_args()
    unknown = set(args.names) - set(known)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    names = args.names or [name for name in known if known[name].sampled or not args.sample]
    if args.list:
        print("\n".join(names))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    rig.remove_leftovers()
    needs = rig.why_not()
    if needs:
        print(f"needs {needs}")
        return NEEDS
    if len(names) == 1:
        return 0 if play(names[0], known[names[0]], args) else 1
    failed = play_all(names, args)
    print(f"{len(names) - len(failed)} of {len(names)} ended well", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
