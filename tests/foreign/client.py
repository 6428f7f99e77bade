"""A client for fts-server in Python, made of `proto/fts/v1/*.proto` and public libraries only.

It shows what a client in another language has to do, and proves that nothing else is needed: it
registers, sends heartbeats, and delivers files of one directory. What happens is told as JSON lines
on standard output. It is for tests and for reading: each attempt starts from zero, and a file that
changes while it is read is given up.

    python3 -m venv venv && venv/bin/pip install grpcio grpcio-tools blake3
    venv/bin/python tests/foreign/client.py --server localhost:3000 --client-id py-1 --dir /srv/share
"""

import argparse
import importlib
import json
import os
import pathlib
import queue
import random
import stat
import sys
import tempfile
import threading
import time

import blake3
import grpc
import grpc_tools
from grpc_tools import protoc

CHUNK_BYTES = 1 << 20
PROTOCOL = 1
JOBS_MAX = 4
WELCOME_WAIT_S = 20
REDIAL_S_MAX = 60
PROTO_DIR = pathlib.Path(__file__).resolve().parents[2] / "proto"


def generate_stubs(proto_dir):
    """Compiles the protocol into a temporary directory, and imports it from there."""
    out = tempfile.TemporaryDirectory(prefix="fts-stubs-")
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    args = ["protoc", f"-I{proto_dir}", f"-I{well_known}", f"--python_out={out.name}"]
    args += [f"--grpc_python_out={out.name}", "fts/v1/types.proto", "fts/v1/file_transfer.proto"]
    if protoc.main(args) != 0:
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, out.name)
    names = ["types_pb2", "file_transfer_pb2", "file_transfer_pb2_grpc"]
    modules = [importlib.import_module(f"fts.v1.{name}") for name in names]
    out.cleanup()
    return modules


def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC32C_TABLE = crc32c_table()


def crc32c(data):
    """The checksum of a chunk: CRC-32C (Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283

EVENT_LOCK = threading.Lock()


def tell(event, **fields):
    """Says what happened, as one JSON line."""
    with EVENT_LOCK:
        print(json.dumps({"event": event, **fields}), flush=True)


class Refused(Exception):
    """The client's own decision not to deliver; `reason` is a FailReason."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Share:
    """The directory that may be read. No command widens it."""

    def __init__(self, directory, default_file):
        self.root = os.path.realpath(directory)
        self.default_file = default_file

    def open(self, path):
        """Opens what a command asks for; raises Refused."""
        if not path:
            if not self.default_file:
                raise Refused("FAIL_REASON_SOURCE_NOT_FOUND", "this client has no default file")
            path = os.path.join(self.root, self.default_file)
        real = os.path.realpath(path) if os.path.isabs(path) and "\0" not in path else ""
        inside = real and os.path.commonpath([real, self.root]) == self.root
        # The same answer whether the file exists or not.
        if not inside or ".." in path.split("/"):
            raise Refused("FAIL_REASON_DENIED_BY_POLICY", "not shared by this client")
        try:
            # Non-blocking, so that a FIFO does not hold it.
            source = os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb")
        except (FileNotFoundError, NotADirectoryError):
            raise Refused("FAIL_REASON_SOURCE_NOT_FOUND", "no such file") from None
        except PermissionError:
            raise Refused("FAIL_REASON_SOURCE_UNREADABLE", "may not be read") from None
        except IsADirectoryError:
            raise Refused("FAIL_REASON_SOURCE_NOT_REGULAR", "a directory") from None
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            source.close()
            raise Refused("FAIL_REASON_SOURCE_NOT_REGULAR", "not a regular file")
        return real, source


class Job:
    """One attempt: the command, and the upload that answers it."""

    def __init__(self, command):
        self.command = command
        self.attempt = command.attempt
        self.bytes_sent = 0
        self.stopped = False
        self.ended = False
        self.call = None

    @property
    def key(self):
        return (self.attempt.transfer_id, self.attempt.epoch)

    def stop(self):
        self.stopped = True
        if self.call is not None:
            self.call.cancel()


class Client:
    """What outlives a session: identity, attempts, and the reports that nobody acknowledged."""

    def __init__(self, args, modules):
        self.args = args
        self.types, self.proto, self.grpc = modules
        self.instance_id = os.urandom(16)
        self.share = Share(args.dir, args.default_file)
        self.lock = threading.Lock()
        self.jobs = {}
        self.reports = {}
        self.outbox = None
        # File bytes have their own connection, so that they never delay a heartbeat.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.data = grpc.insecure_channel(args.server, options=options)

    # === The session ===

    def run(self):
        """Holds a session for ever; redials with growing, jittered pauses."""
        pause = 1.0
        while True:
            began = time.monotonic()
            hint = 0
            try:
                hint = self.session()
            except grpc.RpcError as error:
                tell("session_ended", code=error.code().name, detail=error.details())
            if time.monotonic() - began > 60:
                pause = 1.0
            time.sleep(max(hint, pause * random.uniform(0.5, 1.0)))
            pause = min(pause * 2, REDIAL_S_MAX)

    def session(self):
        """Lives one `Connect`. Returns the seconds that the server asks to stay away."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.args.server, options=options) as channel:
            session = Session(self, queue.Queue())
            stub = self.grpc.FileTransferStub(channel)
            session.call = stub.Connect(session.outgoing())
            with self.lock:
                self.outbox = session.outbox
            try:
                return session.receive()
            finally:
                session.outbox.put(None)

    def hello(self):
        with self.lock:
            running = [job.attempt for job in self.jobs.values() if not job.ended]
        return self.proto.Hello(
            client_id=self.args.client_id,
            instance_id=self.instance_id,
            protocol=PROTOCOL,
            jobs_max=JOBS_MAX,
            version="foreign-client",
            host_name=os.uname().nodename[:255],
            os=sys.platform,
            allowed_roots=[self.share.root],
            running=running,
        )

    def send(self, **body):
        with self.lock:
            if self.outbox is not None:
                self.outbox.put(self.proto.ClientMessage(**body))

    def report(self, attempt, outcome, reason=0, detail=""):
        """Notes how an attempt ended, and says so until it is acknowledged."""
        report = self.proto.AttemptReport(
            attempt=attempt, outcome=outcome, reason=reason, detail=detail[:512]
        )
        with self.lock:
            self.reports[(attempt.transfer_id, attempt.epoch)] = report
        name = self.proto.AttemptReport.Outcome.Name(outcome)
        tell("report", transfer_id=attempt.transfer_id, epoch=attempt.epoch, outcome=name)
        self.send(report=report)

    # === Commands ===

    def obey(self, command):
        """Answers a command. The pair (transfer, epoch) runs once, however often it comes."""
        attempt = command.attempt
        tell("command", transfer_id=attempt.transfer_id, epoch=attempt.epoch, path=command.path)
        verdict, older = self.judge(command)
        for job in older:
            job.stop()
        reply = self.proto.CommandReply(attempt=attempt, verdict=verdict[0])
        self.send(reply=reply)
        if verdict[1] is not None:
            threading.Thread(target=self.work, args=(verdict[1],), daemon=True).start()

    def judge(self, command):
        """Returns ((verdict, the job to start or None), older jobs to stop)."""
        reply = self.proto.CommandReply
        attempt = command.attempt
        with self.lock:
            known = [job for job in self.jobs.values() if job.key[0] == attempt.transfer_id]
            same = [job for job in known if job.attempt.epoch == attempt.epoch]
            if same:
                equal = same[0].command == command
                verdict = reply.VERDICT_ACCEPTED if equal else reply.VERDICT_CONFLICT
                return (verdict, None), []
            if any(job.attempt.epoch > attempt.epoch for job in known):
                return (reply.VERDICT_STALE_EPOCH, None), []
            older = [job for job in known if not job.ended]
            running = [job for job in self.jobs.values() if not job.ended]
            if len(running) - len(older) >= JOBS_MAX:
                return (reply.VERDICT_BUSY, None), []
            job = Job(command)
            self.jobs[job.key] = job
            return (reply.VERDICT_ACCEPTED, job), older

    def stop(self, attempt):
        with self.lock:
            jobs = [
                job
                for job in self.jobs.values()
                if job.key[0] == attempt.transfer_id and job.attempt.epoch <= attempt.epoch
            ]
        for job in jobs:
            job.stop()

    def work(self, job):
        """Runs one attempt to its end, and reports it."""
        outcome = self.proto.AttemptReport
        try:
            path, source = self.share.open(job.command.path)
            with source:
                self.upload(job, path, source)
            ended = (outcome.OUTCOME_DELIVERED,)
        except Refused as refused:
            reason = self.types.FailReason.Value(refused.reason)
            ended = (outcome.OUTCOME_FAILED, reason, refused.detail)
        except OSError as error:
            reason = self.types.FAIL_REASON_IO
            ended = (outcome.OUTCOME_FAILED, reason, os.strerror(error.errno or 0))
        except grpc.RpcError as error:
            tell("upload_broken", code=error.code().name, detail=error.details())
            broken = outcome.OUTCOME_STOPPED if job.stopped else outcome.OUTCOME_BROKEN
            ended = (broken, 0, error.code().name)
        job.ended = True
        self.report(job.attempt, *ended)

    # === The upload ===

    def upload(self, job, path, source):
        before = self.fingerprint(source)
        if before.size > job.command.size_max:
            raise Refused("FAIL_REASON_TOO_LARGE", f"{before.size} bytes")
        digest = blake3.blake3()
        messages = self.messages(job, path, source, before, digest)
        job.call = self.grpc.FileTransferStub(self.data).UploadFile.future(messages)
        if job.stopped:
            job.call.cancel()
        answer = job.call.result()
        receipt = answer.receipts[0]
        if receipt.status == self.proto.Receipt.STATUS_ABORTED:
            raise Refused("FAIL_REASON_SOURCE_CHANGED", "changed while it was read")
        if receipt.attempt != job.attempt or receipt.digest != digest.digest():
            raise Refused("FAIL_REASON_INTEGRITY", "the receipt is for other bytes")
        tell("receipt", transfer_id=job.key[0], epoch=job.key[1], size=receipt.size,
             blake3=receipt.digest.hex())

    def messages(self, job, path, source, before, digest):
        """Header, chunks, Finish: the end of the stream alone would not be the end of the file."""
        request = self.proto.UploadFileRequest
        size = before.size
        yield request(header=self.proto.Header(
            attempt=job.attempt,
            instance_id=self.instance_id,
            file=0,
            range=self.types.Range(offset=0, length=size),
            size=size,
            fingerprint=before,
            path=path,
        ))
        while job.bytes_sent < size:
            data = source.read(min(CHUNK_BYTES, size - job.bytes_sent))
            if not data:
                break
            digest.update(data)
            chunk = self.proto.Chunk(offset=job.bytes_sent, crc32c=crc32c(data), data=data)
            yield request(chunk=chunk)
            job.bytes_sent += len(data)
        after = self.fingerprint(source)
        if job.bytes_sent < size or after != before:
            reason = self.types.FAIL_REASON_SOURCE_CHANGED
            yield request(abort=self.proto.Abort(reason=reason, detail="changed"))
            return
        yield request(finish=self.proto.Finish(
            size=size,
            digest=digest.digest(),
            fingerprint=after,
            delivered=self.types.DELIVERED_UNCHANGED,
        ))

    def fingerprint(self, source):
        status = os.fstat(source.fileno())
        return self.types.Fingerprint(
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


class Session:
    """One life of the control stream."""

    def __init__(self, client, outbox):
        self.client = client
        self.outbox = outbox
        self.call = None
        self.heard = time.monotonic()
        self.heartbeat_s = WELCOME_WAIT_S
        self.silence_s = WELCOME_WAIT_S
        self.welcomed = False

    def outgoing(self):
        """Hello first, then what is queued, and a heartbeat whenever one is due."""
        yield self.client.proto.ClientMessage(hello=self.client.hello())
        seq = 0
        due = time.monotonic() + 0.1
        while True:
            try:
                message = self.outbox.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                # Looks often enough to see silence, and the first Welcome.
                if time.monotonic() - self.heard > self.silence_s:
                    self.call.cancel()
                    return
                due = time.monotonic() + 0.1
                if self.welcomed:
                    seq += 1
                    yield self.heartbeat(seq)
                    due = time.monotonic() + self.heartbeat_s * random.uniform(0.8, 1.2)
                continue
            if message is None:
                return
            yield message

    def heartbeat(self, seq):
        proto = self.client.proto
        with self.client.lock:
            running = [job for job in self.client.jobs.values() if not job.ended]
        progress = [proto.Progress(attempt=j.attempt, bytes_sent=j.bytes_sent) for j in running]
        return proto.ClientMessage(heartbeat=proto.Heartbeat(seq=seq, progress=progress))

    def receive(self):
        """Acts on each message until the stream ends. Returns the seconds to stay away."""
        hint = 0
        for message in self.call:
            self.heard = time.monotonic()
            kind = message.WhichOneof("body")
            if kind == "welcome":
                self.welcome(message.welcome)
            elif kind == "heartbeat_ack":
                tell("heartbeat_ack", seq=message.heartbeat_ack.seq)
            elif kind == "download":
                self.client.obey(message.download)
            elif kind == "stop":
                self.client.stop(message.stop.attempt)
            elif kind == "report_ack":
                attempt = message.report_ack.attempt
                with self.client.lock:
                    self.client.reports.pop((attempt.transfer_id, attempt.epoch), None)
                tell("report_ack", transfer_id=attempt.transfer_id, epoch=attempt.epoch)
            elif kind == "drain":
                hint = message.drain.reconnect_after_ms / 1000 * random.uniform(1, 2)
                tell("drain")
            elif kind == "superseded":
                hint = message.superseded.reconnect_after_ms / 1000
                tell("superseded", by=message.superseded.host_name)
            # Anything else is of a later version, and ignored.
        tell("session_ended", code="OK", detail="")
        return hint

    def welcome(self, welcome):
        self.heartbeat_s = welcome.heartbeat_ms / 1000
        self.silence_s = welcome.silence_ms / 1000
        self.welcomed = True
        tell("welcome", session_epoch=welcome.session_epoch, heartbeat_ms=welcome.heartbeat_ms)
        with self.client.lock:
            reports = list(self.client.reports.values())
        for report in reports:
            self.client.send(report=report)


def main():
    parser = argparse.ArgumentParser(description="An fts client in Python, for tests.")
    parser.add_argument("--server", default="localhost:3000", help="HOST:PORT")
    parser.add_argument("--client-id", required=True)
    parser.add_argument("--dir", required=True, help="the directory that may be read")
    parser.add_argument("--default-file", help="name in --dir, for a command without a path")
    parser.add_argument("--proto", default=PROTO_DIR, help="where fts/v1/*.proto are")
    args = parser.parse_args()
    client = Client(args, generate_stubs(args.proto))
    try:
        client.run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
