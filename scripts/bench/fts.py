"""fts as a contender: a server and a client as they come, and its HTTP interface."""

import http.client
import json
import os
import pathlib
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse

from cost import Tree
from programs import Ended, end, start, wait_for

CLIENT_ID = "bench"
# A connection that was silent for longer is opened anew.
IDLE_S = 5


class Connection(http.client.HTTPConnection):
    """An operator's connection, made in the network of the server."""

    def __init__(self, net, port, access=None):
        super().__init__(net.host, port, timeout=400)
        self.net, self.access = net, access
        self.used_at = time.monotonic()

    def connect(self):
        self.sock = self.net.connect(self.port, self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.access is not None:
            self.sock = self.access.tls.wrap_socket(self.sock, server_hostname=self.net.host)

    def ask(self, method, target):
        """Returns the status, and the JSON of the answer."""
        if time.monotonic() - self.used_at > IDLE_S:
            # The server may have ended it by now; a request opens it again.
            self.close()
        headers = {} if self.access is None else {"Authorization": f"Bearer {self.access.token}"}
        self.request(method, target, headers=headers)
        response = self.getresponse()
        body = response.read()
        self.used_at = time.monotonic()
        return response.status, json.loads(body) if body else None

    def must(self, method, target):
        status, answer = self.ask(method, target)
        if status >= 300:
            raise Ended(f"{method} {target}: {status}: {answer}")
        return answer

    def download(self, path, wait_s):
        """Asks for a file, and waits for COMPLETE."""
        transfer = self.must("POST", download_target(path, wait_s))
        if not transfer["state"].endswith("COMPLETE"):
            raise Ended(f"{path}: {transfer}")
        return transfer


def download_target(path, wait_s):
    query = urllib.parse.urlencode({"path": str(path), "wait": wait_s})
    return f"/download/{CLIENT_ID}?{query}"


def uploads_flag(place):
    """The client's flag for how many files it sends at a time."""
    command = [place.program("fts-client"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--max-uploads", "--max-jobs"):
        if flag in text:
            return flag
    raise Ended("fts-client --help names no flag for the number of uploads")


class Access:
    """An authority for a server, and its first operator's token."""

    def __init__(self, place, data_dir):
        command = [place.program("fts-server"), "init", "--name", "localhost"]
        command += ["--data-dir", data_dir]
        self.token = run_text(command).strip()
        self.data_dir = data_dir
        self.roots = data_dir / "pki" / "roots.pem"
        self.tls = ssl.create_default_context(cafile=self.roots)

    def join(self, place, net, port, work):
        """Makes the client of the bench one of the server's."""
        token = work / "join.token"
        command = [place.program("fts-server"), "token", "create", "--id", CLIENT_ID]
        token.write_text(run_text([*command, "--data-dir", self.data_dir]))
        command = [*net.at_site, place.program("fts-client"), "join", "--token-file", token]
        command += ["--server", f"https://{net.host}:{port}", "--client-id", CLIENT_ID]
        run_text([*command, "--state-dir", work / "state"], env=environ_in(work))


def environ_in(work):
    return {"PATH": os.environ["PATH"], "HOME": str(work), "RUST_LOG": "warn"}


def run_text(command, env=None):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise Ended(f"{command[1:3]} failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Pair:
    """A server and its client. It stays for a row."""

    def __init__(self, place, net, data_dir, server_args=(), client_args=(), access=None):
        self.net, self.access = net, access
        work = place.room("fts")
        environ = environ_in(work)
        port_file = work / "port"
        command = [*net.at_cloud, place.program("fts-server"), "--listen", net.listen]
        command += ["--port-file", port_file, "--data-dir", data_dir, *net.consent, *server_args]
        self.server = start(command, work / "server.log", environ)
        self.client = None
        try:
            address = wait_for(
                "the server listens",
                self.server,
                lambda: port_file.exists() and port_file.read_text().strip(),
            )
            self.port = int(address.rpartition(":")[2])
            scheme = "http"
            if access is not None:
                scheme = "https"
                access.join(place, net, self.port, work)
            command = [*net.at_site, place.program("fts-client"), "--status-port", "0"]
            command += ["--server", f"{scheme}://{net.host}:{self.port}", "--client-id", CLIENT_ID]
            command += ["--allow", place.sources, "--state-dir", work / "state"]
            command += [*net.consent, *client_args]
            self.client = start(command, work / "client.log", environ)
            self.http = Connection(net, self.port, access)
            wait_for("the client registers", self.client, self.is_registered)
        except BaseException:
            self.close()
            raise

    def is_registered(self):
        return self.http.ask("GET", f"/clients/{CLIENT_ID}")[0] == 200

    def close(self):
        if self.client is not None:
            end(self.client)
        end(self.server)


class Fts:
    """Transfers of one file, or of several at once, by a pair that stays."""

    rounds_max = None
    is_needed = True

    def __init__(self, name, pair, sources):
        self.name, self.pair, self.sources = name, pair, sources
        self.connections = [Connection(pair.net, pair.port, pair.access) for _ in sources]
        self.transfers = []

    def pull(self):
        answers = [None] * len(self.sources)
        for connection in self.connections:
            # An operator's connection is warm.
            connection.must("GET", f"/clients/{CLIENT_ID}")

        def ask(number):
            try:
                connection = self.connections[number]
                answers[number] = connection.download(self.sources[number], 300)
            except (Ended, OSError, http.client.HTTPException) as err:
                answers[number] = err

        numbers = range(len(self.sources))
        # Daemons, so that Ctrl-C does not wait for a download.
        askers = [threading.Thread(target=ask, args=[n], daemon=True) for n in numbers]
        with Tree(self.pair.server.pid) as server, Tree(self.pair.client.pid) as client:
            began = time.monotonic()
            for asker in askers:
                asker.start()
            for asker in askers:
                asker.join()
            seconds = time.monotonic() - began
        for answer in answers:
            if isinstance(answer, Exception):
                raise Ended(f"{self.name}: {answer}") from answer
        self.transfers = answers
        return seconds, {"client": client.cost, "server": server.cost}

    def landed(self):
        return [pathlib.Path(transfer["location"]) for transfer in self.transfers]

    def forget(self):
        """Removes the bytes of the last transfers, as an operator would."""
        for transfer in self.transfers:
            self.pair.http.must("DELETE", f"/transfers/{transfer['id']}")

    def close(self):
        for connection in self.connections:
            connection.close()
