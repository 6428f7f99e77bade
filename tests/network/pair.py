"""A server and a client over a rig, what is asked of them, and what must be true in the end."""

import os
import pathlib
import time

from rig import CLOUD, PATIENCE_S, PORT, Failed, Operator, Program, Rig, run, until

CLIENT = "web-1"
# Slow enough to be cut in the middle, and not before more has come than a cut may cost.
UPLOAD_BYTES, UPLOAD_CUT_AT_BYTES, UPLOAD_RATE = 32 << 20, 20 << 20, "4MB/s"
CUT_COST_BYTES = 16 << 20
# One that is kept in memory until it is whole, and one that is not.
SMALL_BYTES = (10_000, 200_000)
# As in src/limits.rs, of the heartbeat.
SERVER_SILENCE, CLIENT_SILENCE = 2.2, 3.2
# What the promise allows: from mending to a client that delivers.
BACK_S = 60
# A look at the other end, on a busy machine.
LOOK_S = 4


class Pair:
    """Both programs, the transfers that were asked for, and what was measured."""

    def __init__(self, place, programs, heartbeat_s, **nat):
        self.place, self.programs, self.heartbeat_s = pathlib.Path(place), programs, heartbeat_s
        self.server = self.client = None
        self.asked, self.measured = {}, {}
        self.share = self.place / "share"
        self.share.mkdir()
        self.data = self.place / "data"
        self.rig = Rig(**nat)
        self.operator = Operator(self.rig)
        try:
            self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self):
        self.start_server()
        self.start_client()

    def start_server(self):
        port_file = self.place / "port"
        port_file.unlink(missing_ok=True)
        words = ["--listen", f"0.0.0.0:{PORT}", "--insecure", "--log-format", "json"]
        words += ["--data-dir", self.data, "--port-file", port_file]
        words += ["--heartbeat", f"{int(self.heartbeat_s * 1000)}ms"]
        command = [self.programs / "fts-server", *words]
        self.server = Program(self.rig.cloud, self.place / "server.log", command)
        until("the server listens", PATIENCE_S, port_file.exists)

    def start_client(self):
        self._set_rate(UPLOAD_RATE)
        words = ["--server", f"http://{CLOUD}:{PORT}", "--insecure", "--client-id", CLIENT]
        words += ["--allow", self.share, "--state-dir", self.place / "state", "--status-port", "0"]
        words += ["--config", self.place / "client.toml", "--log-format", "json"]
        command = [self.programs / "fts-client", *words]
        self.client = Program(self.rig.site, self.place / "client.log", command)
        until("the client registers", PATIENCE_S, lambda: self.client.lines("registered"))

    def _set_rate(self, rate):
        (self.place / "client.toml").write_text(f'max_rate = "{rate}"\n')

    def hurry(self):
        """What is left of the uploads may go as fast as it can."""
        self._set_rate("off")
        self.client.hang_up()

    def close(self):
        for program in (self.client, self.server):
            if program is not None:
                program.end()
        self.rig.close()

    # --- What is asked for, and what is seen ---

    def trigger(self, size=SMALL_BYTES[1]):
        """Asks for a new file."""
        path = self.share / f"file-{len(self.asked)}"
        path.write_bytes(os.urandom(size))
        transfer = self.operator.ask("POST", f"/download/{CLIENT}?path={path}")["id"]
        self.asked[transfer] = path
        return transfer

    def transfer(self, transfer):
        return self.operator.ask("GET", f"/transfers/{transfer}")

    def complete(self, transfer, seconds, since):
        """Waits until it is COMPLETE; returns how many seconds after `since` that was."""
        probe = lambda: self.transfer(transfer)["state"] == "COMPLETE"
        try:
            return until(f"transfer {transfer}", seconds, probe, since)[1]
        except Failed as err:
            raise Failed(f"{err}: {self.transfer(transfer)}") from None

    def presence(self):
        return self.operator.ask("GET", f"/clients/{CLIENT}")["presence"]

    def upload(self):
        """Begins an upload; returns it when it is in the middle."""
        transfer = self.trigger(UPLOAD_BYTES)
        probe = lambda: self.transfer(transfer)["done_bytes"] >= UPLOAD_CUT_AT_BYTES
        until("the upload is in the middle", PATIENCE_S, probe)
        return transfer

    def sessions(self):
        """How many there have been, as the server saw it."""
        return len(self.server.lines("client connected"))

    # --- What must be true ---

    def is_missed(self, cut_at):
        """Waits until both ends have noticed that the path is dead, each by its own deadline."""
        lost = len(self.client.lines("no session; trying again"))
        offline = lambda: self.presence() == "OFFLINE"
        noticed = lambda: len(self.client.lines("no session; trying again")) > lost
        silent_s = self.heartbeat_s * SERVER_SILENCE + LOOK_S
        took = until("the client misses the server", silent_s, noticed, cut_at)[1]
        self.measured["missed by the client"] = took
        silent_s = self.heartbeat_s * CLIENT_SILENCE + LOOK_S
        took = until("the server misses the client: OFFLINE", silent_s, offline, cut_at)[1]
        self.measured["by the server"] = took

    def recovers(self, mend, upload=None, within_s=BACK_S, moves_within_s=BACK_S):
        """Mends, and waits until the client delivers again and is ONLINE, and until an upload that
        was cut moves again and is done."""
        before = self.transfer(upload) if upload else None
        if before and before["state"] == "COMPLETE":
            raise Failed("the upload was done before it could be cut: this proves nothing")
        mend()
        mended_at = time.monotonic()
        fresh = self.trigger()
        goals = {
            "back": lambda: self.transfer(fresh)["state"] == "COMPLETE",
            # Before that it may be the old session that is not missed yet.
            "ONLINE": lambda: "back" not in goals and self.presence() == "ONLINE",
        }
        if upload:
            goals["upload moves"] = lambda: self._moves(before)
        while goals:
            for goal, is_met in list(goals.items()):
                took = time.monotonic() - mended_at
                if is_met():
                    self.measured[goal] = took
                    del goals[goal]
                elif took > (moves_within_s if goal == "upload moves" else within_s):
                    told = self.transfer(fresh), before and self.transfer(upload)
                    raise Failed(f"{goal}: not {took:.0f} s after mending: {told}")
            time.sleep(0.05)
        if upload:
            self.hurry()
            self.complete(upload, PATIENCE_S, time.monotonic())
            after = self.transfer(upload)
            self.measured["attempts"] = after["attempts"]
            self.measured["received twice, KiB"] = (after["received_bytes"] - UPLOAD_BYTES) >> 10

    def _moves(self, before):
        now = self.transfer(before["id"])
        mark = before["done_bytes"] if now["epoch"] == before["epoch"] else 0
        return now["state"] == "COMPLETE" or now["done_bytes"] > mark

    def holds(self, errors=()):
        """Nothing was lost, and nothing was done twice; nor was there any error but these."""
        for transfer in self.asked:
            self.complete(transfer, BACK_S, time.monotonic())
            self._costs_no_more(self.transfer(transfer))
        landed = sorted(path.name for path in (self.data / "files").glob("??/*"))
        wanted = {f"{each}.{self.transfer(each)['epoch']}": each for each in self.asked}
        if landed != sorted(wanted):
            raise Failed(f"landed: {landed}, and not {sorted(wanted)}")
        for name, transfer in wanted.items():
            [path] = (self.data / "files").glob(f"??/{name}")
            run("cmp", str(path), str(self.asked[transfer]))
        self._each_once("completed", self.server.lines("transfer complete"), with_epoch=False)
        self._each_once("delivered", self.client.lines("delivered"), with_epoch=False)
        ends = ("delivered", "stopped", "broke; the server decides", "not delivered")
        lines = [line for line in self.client.lines() if line["message"] in ends]
        self._each_once("run", lines, with_epoch=True)
        for program in (self.server, self.client):
            loud = [line for line in program.lines() if line["level"] == "ERROR"]
            loud = [line for line in loud if line["message"] not in errors]
            if loud or program.process.poll() is not None:
                raise Failed(f"{program.log.name}: ended, or met an error: {loud}")

    @staticmethod
    def _costs_no_more(transfer):
        """What was received twice: of each attempt that broke, what was not kept."""
        wasted = transfer["received_bytes"] - transfer["size_bytes"]
        if wasted > CUT_COST_BYTES * (transfer["attempts"] - 1):
            raise Failed(f"{wasted} bytes were received in vain: {transfer}")

    @staticmethod
    def _each_once(what, lines, *, with_epoch):
        keys = [
            (line["span"]["transfer_id"], line["epoch"] if with_epoch else None) for line in lines
        ]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise Failed(f"{what} more than once: {twice}")
