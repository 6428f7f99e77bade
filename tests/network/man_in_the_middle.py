"""Somebody on the path: what the site dials to the server comes to him, and he pretends to be it.

He is on the host aside, in threads of this process, and writes down what he could read.
"""

import contextlib
import pathlib
import socket
import ssl
import threading

from rig import ASIDE, CLOUD, PORT, inside, run

P256_POINT_BYTES = 65
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
NAMED = ("-subj", "/CN=fts-server", "-addext", f"subjectAltName=IP:{CLOUD}", "-days", "2")


class ManInTheMiddle:
    """Dialled until he leaves. `read` is what he could read; nothing is what it must be."""

    def __init__(self, rig, attend):
        self.rig, self.attend = rig, attend
        self.met, self.read = 0, b""
        with inside(rig.aside):
            self.listener = socket.create_server((ASIDE, PORT))
        threading.Thread(target=self._listen, daemon=True).start()
        rig.redirect()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.met += 1
                threading.Thread(target=self._meet, args=[connection], daemon=True).start()

    def _meet(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            self.attend(self, connection)

    def leave(self):
        self.rig.stop_redirecting()
        self.listener.close()


def terminator(certificate, key):
    """Ends TLS himself, with what he has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])

    def attend(man, connection):
        with context.wrap_socket(connection, server_side=True) as plain:
            while part := plain.recv(1 << 16):
                man.read += part

    return attend


def flipper(at):
    """Passes everything on, and flips a bit of the server's byte `at` of each connection."""

    def attend(man, connection):
        with inside(man.rig.aside):
            onward = socket.create_connection((CLOUD, PORT), timeout=10)
        with onward:
            onwards = threading.Thread(target=_pass_on, args=[connection, onward], daemon=True)
            onwards.start()
            _pass_on(onward, connection, at)

    return attend


def _pass_on(source, sink, at=None):
    done = 0
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            if at is not None and done <= at < done + len(part):
                changed = bytearray(part)
                changed[at - done] ^= 1
                part = bytes(changed)
            done += len(part)
            sink.sendall(part)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


# --- What he shows ---


def self_signed(place, _server_chain):
    """Of nobody, for the right name."""
    return _openssl(place, "leaf", "-x509", *KEY, *NAMED)


def of_another_authority(place, server_chain):
    """Of an authority of his own, for the right name; and the right root is shown with it."""
    authority = _openssl(place, "authority", "-x509", *KEY, "-subj", "/CN=fts root", "-days", "2")
    signer = ("-CA", str(authority[0]), "-CAkey", str(authority[1]))
    of_server = ("-addext", "basicConstraints=CA:FALSE", "-addext", "extendedKeyUsage=serverAuth")
    leaf, key = _openssl(place, "leaf", "-x509", *KEY, *signer, *NAMED, *of_server)
    leaf.write_text(leaf.read_text() + authority[0].read_text() + server_chain.read_text())
    return leaf, key


def without_its_key(place, server_chain):
    """The server's own, which is no secret, and a key that only claims to be of it."""
    leaf, key = place / "leaf.pem", place / "leaf.key"
    leaf.write_bytes(server_chain.read_bytes())
    (place / "public").write_text(run("openssl", "x509", "-in", str(leaf), "-pubkey", "-noout"))
    public, own = place / "public.der", place / "own.der"
    from_text = ("-pubin", "-in", str(place / "public"))
    run("openssl", "pkey", *from_text, "-outform", "DER", "-out", str(public))
    curve = ("-name", "prime256v1", "-genkey", "-noout")
    run("openssl", "ecparam", *curve, "-outform", "DER", "-out", str(own))
    # The public half is the last part of both; OpenSSL compares that half alone.
    point = public.read_bytes()[-P256_POINT_BYTES:]
    own.write_bytes(own.read_bytes()[:-P256_POINT_BYTES] + point)
    run("openssl", "ec", "-inform", "DER", "-in", str(own), "-out", str(key))
    return leaf, key


def _openssl(place, name, *words):
    """Makes a certificate and its key."""
    certificate, key = (pathlib.Path(place) / f"{name}.{end}" for end in ("pem", "key"))
    run("openssl", "req", *words, "-keyout", str(key), "-out", str(certificate))
    return certificate, key
