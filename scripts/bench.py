"""Measures fts beside cp and rsync, in one run on one machine.

Big file: one file of 1 GiB, from the page cache to tmpfs, by each contender in turn, ROUNDS times (default 5).
Each run starts with memory that has just been touched, because a virtual machine needs seconds to get a
fresh GiB. Small file: the time from the request to COMPLETE of a file of 1 KiB, over one HTTP connection.

CPU seconds and peak memory are those of each end: for programs that stay, from /proc (VmHWM, reset before
the run); for those that end, from wait4. A table goes to standard output, every sample to
target/bench/*.json. Linux only. A further contender is a class with `name`, `pull` and `close`.

    ROUNDS=5 SIZE_MIB=1024 SMALL=200 python3 scripts/bench.py target
"""

import contextlib
import filecmp
import http.client
import json
import os
import pathlib
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZE_BYTES = int(os.environ.get("SIZE_MIB", "1024")) << 20
SMALL_SAMPLES = int(os.environ.get("SMALL", "200"))
SMALL_BYTES = 1024
CLIENT_ID = "bench"
START_WAIT_S = 30
TICKS = os.sysconf("SC_CLK_TCK")


# === What a run costs ===


class Tree:
    """CPU and memory of a program that stays, and of the children it makes."""

    def __init__(self, pid):
        self.pid = pid
        self.peak_bytes_by_pid = {}
        self.done = threading.Event()

    def __enter__(self):
        for pid in self.pids():
            # 5 resets VmHWM to what is resident now.
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.cpu_s_before = self.cpu_s()
        # Children that a daemon makes for one run end with it, so they are looked at meanwhile.
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        # The CPU time of a child that was made for the run counts once its parent has reaped it.
        deadline = time.monotonic() + 1
        while len(self.pids()) > 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        self.done.set()
        self.watcher.join()
        self.look()
        self.cost = {
            "cpu_s": self.cpu_s() - self.cpu_s_before,
            "peak_bytes": sum(self.peak_bytes_by_pid.values()),
        }

    def watch(self):
        while not self.done.wait(0.02):
            self.look()

    def look(self):
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.peak_bytes_by_pid[pid] = int(line.split()[1]) * 1024

    def pids(self):
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
                todo += [int(child) for child in children.split()]
        return found

    def cpu_s(self):
        """User and system time; that of ended children is counted by their parent."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                text = pathlib.Path(f"/proc/{pid}/stat").read_text()
                fields = text.rpartition(")")[2].split()
                total += sum(int(field) for field in fields[11:15])
        return total / TICKS


def run_once(command):
    """Runs a command to its end. Returns its seconds, and its cost."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"bench: {command[0]} failed with {process.returncode}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return seconds, {"cpu_s": cpu_s, "peak_bytes": usage.ru_maxrss * 1024}


def start(command, log_path, environ=None):
    """Starts a program that stays."""
    with open(log_path, "wb") as log:
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stderr=log)


def wait_for(what, process, probe):
    deadline = time.monotonic() + START_WAIT_S
    while True:
        found = probe()
        if found:
            return found
        if process.poll() is not None:
            sys.exit(f"bench: the program ended before {what}")
        if time.monotonic() > deadline:
            sys.exit(f"bench: waited in vain for {what}")
        time.sleep(0.05)


def end(process):
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# === The contenders ===


class Cp:
    """The bound: one process, no network."""

    name = "cp"

    def __init__(self, place):
        self.landed = place.landing / "cp.bin"

    def pull(self, source):
        seconds, cost = run_once(["cp", str(source), str(self.landed)])
        return seconds, {"client": cost}

    def take(self):
        return self.landed

    def close(self):
        pass


class Rsync:
    """Pulls from a daemon on loopback."""

    name = "rsync"

    def __init__(self, place):
        self.landed = place.landing / "rsync.bin"
        self.port = free_port()
        config = place.work / "rsyncd.conf"
        # As root the daemon would become nobody, who may not read the source.
        owner = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
        config.write_text(
            f"use chroot = no\nreverse lookup = no\n{owner}"
            f"[bench]\npath = {place.source.parent}\nread only = yes\n"
        )
        command = ["rsync", "--daemon", "--no-detach", f"--config={config}"]
        command += ["--address=127.0.0.1", f"--port={self.port}"]
        command += [f"--log-file={place.work}/rsync.log"]
        self.daemon = start(command, place.work / "rsync.err")
        wait_for("rsync listens", self.daemon, self.listens)

    def listens(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    def pull(self, source):
        url = f"rsync://127.0.0.1:{self.port}/bench/{source.name}"
        with Tree(self.daemon.pid) as daemon:
            seconds, cost = run_once(["rsync", "--whole-file", url, str(self.landed)])
        # Here the file is sent by the daemon, and received by the command.
        return seconds, {"client": daemon.cost, "server": cost}

    def take(self):
        return self.landed

    def close(self):
        end(self.daemon)


class Fts:
    """A server with its files on tmpfs, and a client, both as they come."""

    name = "fts"

    def __init__(self, place):
        self.place = place
        home = place.work / "home"
        home.mkdir()
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "RUST_LOG": "warn"}
        port_file = place.work / "port"
        command = [place.program("fts-server"), "--listen", "127.0.0.1:0"]
        command += ["--port-file", port_file, "--data-dir", place.landing / "fts"]
        self.server = start(command, place.work / "server.log", environ)
        self.address = wait_for(
            "the server listens",
            self.server,
            lambda: port_file.exists() and port_file.read_text().strip(),
        )
        command = [place.program("fts-client"), "--server", f"http://{self.address}"]
        command += ["--client-id", CLIENT_ID, "--allow", place.source.parent, "--status-port", "0"]
        command += ["--state-dir", place.work / "state"]
        self.client = start(command, place.work / "client.log", environ)
        self.http = http.client.HTTPConnection(self.address, timeout=400)
        wait_for("the client registers", self.client, self.is_registered)
        self.id = None

    def is_registered(self):
        return self.request("GET", f"/clients/{CLIENT_ID}")[0] == 200

    def request(self, method, target):
        self.http.request(method, target)
        response = self.http.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body else None

    def download(self, path, wait_s):
        """Asks for a file, and waits for COMPLETE."""
        query = urllib.parse.urlencode({"path": str(path), "wait": wait_s})
        status, transfer = self.request("POST", f"/download/{CLIENT_ID}?{query}")
        if status != 200 or not transfer["state"].endswith("COMPLETE"):
            sys.exit(f"bench: {status}: {transfer}")
        return transfer

    def pull(self, source):
        with Tree(self.server.pid) as server, Tree(self.client.pid) as client:
            began = time.monotonic()
            transfer = self.download(source, 300)
            seconds = time.monotonic() - began
        self.id = transfer["id"]
        self.landed = pathlib.Path(transfer["location"])
        return seconds, {"client": client.cost, "server": server.cost}

    def take(self):
        return self.landed

    def forget(self):
        """Removes the bytes of the last transfer, as an operator would."""
        status, answer = self.request("DELETE", f"/transfers/{self.id}")
        if status >= 300:
            sys.exit(f"bench: {status}: {answer}")

    def close(self):
        self.http.close()
        end(self.client)
        end(self.server)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# === The runs ===


class Place:
    """Where things are: the source on disk (and in the page cache), the destination on tmpfs."""

    def __init__(self, target):
        self.target = target
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="fts-bench.", dir=target))
        shm = pathlib.Path("/dev/shm")
        self.on_tmpfs = shm.is_dir() and os.access(shm, os.W_OK) and self.fits(shm)
        parent = shm if self.on_tmpfs else self.work
        self.landing = pathlib.Path(tempfile.mkdtemp(prefix="fts-bench.", dir=parent))
        self.source = self.work / "source" / "big.bin"
        self.small = self.work / "source" / "small.bin"
        self.source.parent.mkdir()
        with open(self.source, "wb") as out:
            for _ in range(0, SIZE_BYTES, 1 << 20):
                out.write(os.urandom(1 << 20))
        self.small.write_bytes(os.urandom(SMALL_BYTES))

    @staticmethod
    def fits(directory):
        # The landed file, or the scratch file before it, and room to breathe.
        return shutil.disk_usage(directory).free > 2 * SIZE_BYTES + (256 << 20)

    def program(self, name):
        return self.target / "release" / name

    def warm(self):
        """Touches the source, and as much fresh memory as the destination will need."""
        scratch = self.landing / "scratch"
        with open(self.source, "rb") as source, open(scratch, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        scratch.unlink()

    def close(self):
        shutil.rmtree(self.landing, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)


def measure_big(place, contenders):
    samples = {contender.name: [] for contender in contenders}
    for number in range(ROUNDS):
        # In turn, so that a slow minute hits all of them.
        for contender in contenders:
            place.warm()
            seconds, ends = contender.pull(place.source)
            landed = contender.take()
            if number == 0 and not filecmp.cmp(place.source, landed, shallow=False):
                sys.exit(f"bench: {contender.name} delivered other bytes")
            forget = getattr(contender, "forget", landed.unlink)
            forget()
            samples[contender.name].append({"seconds": seconds, "ends": ends})
            rate = SIZE_BYTES / seconds / 1e6
            print(f"  round {number + 1}: {contender.name:6} {rate:7.0f} MB/s", file=sys.stderr)
    return samples


def measure_small(place, fts):
    for _ in range(5):
        fts.download(place.small, 30)
    samples = []
    for _ in range(SMALL_SAMPLES):
        began = time.monotonic()
        fts.download(place.small, 30)
        samples.append(time.monotonic() - began)
    return samples


# === The report ===


def first_line(*command):
    with contextlib.suppress(OSError, subprocess.CalledProcessError, IndexError):
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    return None


def machine():
    cpu = None
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes,
        "kernel": platform.release(),
        "load": os.getloadavg(),
    }


def versions(place):
    return {
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "fts": first_line(place.program("fts-server"), "--version"),
        "rustc": first_line("rustc", "--version"),
        "cp": first_line("cp", "--version"),
        "rsync": first_line("rsync", "--version"),
        "python": platform.python_version(),
    }


def of_ends(runs, side, field):
    values = [run["ends"][side][field] for run in runs if side in run["ends"]]
    return statistics.median(values) if values else None


def summarise(runs):
    rates = sorted(SIZE_BYTES / run["seconds"] for run in runs)
    return {
        "rate_median": statistics.median(rates),
        "rate_min": rates[0],
        "rate_max": rates[-1],
        **{
            f"{side}_{field}": of_ends(runs, side, field)
            for side in ("client", "server")
            for field in ("cpu_s", "peak_bytes")
        },
    }


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def print_table(big, where):
    print(f"\n{SIZE_BYTES >> 20} MiB, page cache to {where}, medians of {ROUNDS} rounds in turn;")
    print("client: the end that has the file; server: the end that wants it; cp is one process\n")
    head = f"{'':8}{'MB/s':>8}{'min-max':>14}{'of cp':>8}"
    print(head + f"{'client CPU s':>14}{'RSS MiB':>9}{'server CPU s':>14}{'RSS MiB':>9}")
    for name, row in big.items():
        spread = f"{row['rate_min'] / 1e6:.0f}-{row['rate_max'] / 1e6:.0f}"
        ratio = row["rate_median"] / big["cp"]["rate_median"]
        line = f"{name:8}{row['rate_median'] / 1e6:>8.0f}{spread:>14}{ratio:>8.2f}"
        for side in ("client", "server"):
            cpu_s, peak = row[f"{side}_cpu_s"], row[f"{side}_peak_bytes"]
            line += f"{'-' if cpu_s is None else f'{cpu_s:.2f}':>14}"
            line += f"{'-' if peak is None else f'{peak / 2**20:.0f}':>9}"
        print(line)


def measure(place, contenders):
    if not place.on_tmpfs:
        print("bench: NO ROOM IN /dev/shm: the destination is on disk instead", file=sys.stderr)
    where = "tmpfs" if place.on_tmpfs else "disk"
    report = {"machine": machine(), "versions": versions(place), "destination": where}
    report.update(size_bytes=SIZE_BYTES, rounds=ROUNDS)
    samples = measure_big(place, contenders)
    big = {name: summarise(runs) for name, runs in samples.items()}
    small = measure_small(place, contenders[-1])
    p50, p99 = percentile(small, 0.50), percentile(small, 0.99)
    report.update(big=big, big_samples=samples, small_samples_s=small)
    report["small"] = {"bytes": SMALL_BYTES, "p50_s": p50, "p99_s": p99}
    print_table(big, where)
    print(f"\n{SMALL_BYTES} bytes, from request to COMPLETE, {len(small)} in a row:", end=" ")
    print(f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    return report


def main():
    place = Place(pathlib.Path(sys.argv[1]).resolve())
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(place.close)
        kinds = [Cp, Rsync, Fts]
        if shutil.which("rsync") is None:
            print("bench: SKIPPED: no rsync on this machine, so no rsync row", file=sys.stderr)
            kinds.remove(Rsync)
        contenders = []
        for kind in kinds:
            contenders.append(kind(place))
            cleanup.callback(contenders[-1].close)
        report = measure(place, contenders)
    results = place.target / "bench"
    results.mkdir(exist_ok=True)
    path = results / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"every sample: {path}")


if __name__ == "__main__":
    main()
