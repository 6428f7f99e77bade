"""A server that asks for TLS and credentials, a client that joined it, and an operator aside.

Each has a directory of its own, in which it is at home, and types what people type there.
"""

import os
import pathlib
import re
import shutil
import ssl

from pair import CLIENT, PATIENCE_S, Pair
from rig import CLOUD, PORT, Failed, Operator, Program, call, until

SERVER_URL = f"https://{CLOUD}:{PORT}"
# What the client, and so its log, calls an error.
NOT_LET_IN = "the server does not let this client in"
ROOTS = "fts-data/pki/roots.pem"


def tool(scenario, name):
    """Whether this machine has a program. One that has not is told so; on CI it fails."""
    if shutil.which(name):
        return True
    if os.environ.get("CI") == "true":
        raise Failed(f"needs {name}")
    line = f"SKIPPED {scenario}: needs {name}\n"
    print(line, end="", flush=True)
    if "FTS_SKIPS" in os.environ:
        with open(os.environ["FTS_SKIPS"], "a") as file:
            file.write(line)
    return False


class Secured(Pair):
    """Its client is to be joined and started by the scenario."""

    def __init__(
        self, place, programs, heartbeat_s, *, certificate_life="7d", is_made=True, **nat
    ):
        self.certificate_life, self.secrets = certificate_life, []
        # Otherwise the scenario makes and starts the server, too.
        self.is_made = is_made
        # What the scenario makes the programs log as errors.
        self.errors = []
        for who in ("cloud", "site", "office"):
            (pathlib.Path(place) / who).mkdir()
        super().__init__(place, programs, heartbeat_s, **nat)

    def begin(self):
        self.data = self.place / "cloud/fts-data"
        if self.is_made:
            token = self.in_cloud("fts-server", "init", "--name", CLOUD).stdout
            self.keep(self.place / "office/admin.token", token)
            self.know_server(token)
            self.start_server()

    def know_server(self, token):
        """What has been made is known to the operator that looks after the transfers."""
        trust = ssl.create_default_context(cafile=str(self.place / "cloud" / ROOTS))
        self.operator = Operator(self.rig, trust, token.strip())

    def keep(self, path, secret):
        """Writes a secret for its owner alone, and has `holds` look for it where it must not be."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secret)
        # As src/token.rs has it: the parts before are a name, and the last one is of the root.
        self.secrets.append(secret.split("_")[-2])

    # --- What people type, and where ---

    def in_cloud(self, *words, status=0):
        return self.typed("cloud", words, status)

    def in_office(self, *words, status=0, **variables):
        return self.typed("office", words, status, **variables)

    def on_site(self, *words, status=0, who="site", **variables):
        return self.typed(who, words, status, on=self.rig.site, **variables)

    def typed(self, who, words, status=0, on=None, **variables):
        """Runs a program, or a line of shell, to its end, which must be as expected."""
        hosts = {"cloud": self.rig.cloud, "site": self.rig.site, "office": self.rig.aside}
        command = ["bash", "-euc", words] if isinstance(words, str) else words
        done = call(on or hosts[who], command, **self._around(who, variables))
        told = words if isinstance(words, str) else words[:2]
        with open(self.place / "typed.log", "a") as log:
            log.write(f"{who}: {told}: {done.returncode}\n{done.stderr}")
        if status not in (None, done.returncode):
            raise Failed(f"{words}: ended with {done.returncode}: {done.stderr}{done.stdout[:500]}")
        return done

    def _around(self, who, variables):
        home, path = self.place / who, f"{self.programs}:{os.environ['PATH']}"
        return {"environment": {"HOME": str(home), "PATH": path, **variables}, "directory": home}

    def start_server(self):
        words = ["--listen", f"0.0.0.0:{PORT}", "--port-file", self.place / "port"]
        words += ["--heartbeat", f"{int(self.heartbeat_s * 1000)}ms"]
        words += ["--certificate-life", self.certificate_life]
        (self.place / "port").unlink(missing_ok=True)
        command, log = [self.programs / "fts-server", *words], self.place / "server.log"
        self.server = Program(self.rig.cloud, log, command, **self._around("cloud", {}))
        until("the server listens", PATIENCE_S, (self.place / "port").exists)

    def token(self, *words):
        """Makes a join token, and brings it to the site."""
        made = self.in_cloud("fts-server", "token", "create", "--id", CLIENT, *words).stdout
        self.keep(self.place / "site/web-1.token", made)

    def join(self, *words, status=0, who="site", **variables):
        token = self.place / "site/web-1.token"
        joining = ("fts-client", "join", "--server", SERVER_URL, "--token-file", token)
        joining += ("--client-id", CLIENT, "--allow", self.share)
        return self.on_site(*joining, *words, status=status, who=who, **variables)

    def start_client(self, rate="off", **variables):
        """Just `fts-client`, with a file for the rate; returns what tells that it registered."""
        self._set_rate(rate)
        known = len(self.registered())
        variables = {"FTS_CONFIG": str(self.place / "client.toml"), **variables}
        command = [self.programs / "fts-client"]
        around = self._around("site", variables)
        self.client = Program(self.rig.site, self.place / "client.log", command, **around)
        return lambda: len(self.registered()) > known

    def joined_client(self, rate="off"):
        """Joins, and starts the client; returns when it has registered."""
        self.token()
        self.join()
        until("the client registers", PATIENCE_S, self.start_client(rate))

    def log_in(self):
        self.in_office("fts", "login", SERVER_URL, "--token-file", "admin.token")

    # --- What is seen ---

    def registered(self):
        log = self.place / "client.log"
        return self.client.lines("registered") if self.client and log.exists() else []

    def reasons(self, message="no session; trying again"):
        return [line["reason"] for line in self.client.lines(message)]

    def listed(self):
        """The row of the client in what `fts clients` prints."""
        rows = self.in_office("fts", "clients").stdout.splitlines()
        [row] = [row for row in rows if row.startswith(f"{CLIENT} ")]
        return row

    def holds(self):
        super().holds(self.errors)
        self.keeps_secrets()

    def keeps_secrets(self):
        """No secret is in a log, or in what a process list shows."""
        shown = list(self.place.glob("*.log"))
        shown += pathlib.Path("/proc").glob("[0-9]*/cmdline")
        for path in shown:
            try:
                text = path.read_bytes()
            except OSError:
                # A process that has ended meanwhile.
                continue
            if any(secret.encode() in text for secret in self.secrets):
                raise Failed(f"{path} shows a secret")


def expect(pattern, text):
    """Returns the match of what must be told."""
    found = re.search(pattern, text)
    if not found:
        raise Failed(f"{pattern!r} is not told in {text!r}")
    return found


