"""The network of most rows: both ends on this machine's loopback."""

import socket


class Loopback:
    """See netns.Lab for the other network."""

    # Before the commands of the end that has the file, and of the end that wants it.
    at_site = ()
    at_cloud = ()
    host = "127.0.0.1"
    listen = "127.0.0.1:0"
    # What fts needs to be told beyond loopback.
    consent = ()

    def free_port(self):
        with socket.socket() as listener:
            listener.bind((self.host, 0))
            return listener.getsockname()[1]

    def connect(self, port, timeout_s):
        return socket.create_connection((self.host, port), timeout=timeout_s)

    def listens(self, port):
        try:
            self.connect(port, 1).close()
        except OSError:
            return False
        return True
