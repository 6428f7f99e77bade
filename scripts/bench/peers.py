"""The other programs that move a file: cp, rsync, nginx and scp, each with a server of its own."""

import os
import shutil

from cost import Tree
from programs import end, run_once, start, wait_for, which
from settings import SLOW_ROUNDS


class Peer:
    """One file, one landing; `rounds_max` is for the slow ones. Without it the row still says
    something, unless it is needed."""

    rounds_max = None
    is_needed = False

    def __init__(self, source, landing):
        self.sources = [source]
        self.source = source
        self.target = landing / f"{self.name.replace(' ', '-')}.bin"

    def landed(self):
        return [self.target]

    def forget(self):
        self.target.unlink()

    def close(self):
        pass


class Cp(Peer):
    """The bound: one process, no network."""

    name = "cp"
    is_needed = True

    def pull(self):
        seconds, cost = run_once(["cp", self.source, self.target])
        return seconds, {"client": cost}


class CpSync(Peer):
    """The bound for what shall be on stable storage."""

    name = "cp+sync"
    is_needed = True

    def pull(self):
        script = 'cp "$1" "$2" && sync "$2"'
        seconds, cost = run_once(["sh", "-c", script, "sh", self.source, self.target])
        return seconds, {"client": cost}


class RsyncDaemon:
    """Serves one directory."""

    def __init__(self, place, net, prefix, directory, mode):
        work = place.room("rsync")
        config = work / "rsyncd.conf"
        self.port = net.free_port()
        # As root the daemon would become nobody, who may not read the source.
        owner = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
        config.write_text(
            f"use chroot = no\nreverse lookup = no\n{owner}"
            f"[bench]\npath = {directory}\nread only = {'no' if mode == 'write' else 'yes'}\n"
        )
        command = [*prefix, "rsync", "--daemon", "--no-detach", f"--config={config}"]
        command += [f"--address={net.host}", f"--port={self.port}", f"--log-file={work}/log"]
        self.process = start(command, work / "err")
        self.url = f"rsync://{net.host}:{self.port}/bench"
        started(self, "rsync listens", lambda: net.listens(self.port))

    def close(self):
        end(self.process)


class RsyncPull(Peer):
    """The end that wants the file pulls it from a daemon at the other."""

    name = "rsync pull"

    def __init__(self, place, net, source, landing, options=()):
        super().__init__(source, landing)
        self.options = options
        self.daemon = RsyncDaemon(place, net, net.at_site, source.parent, "read")

    def pull(self):
        command = ["rsync", "--whole-file", *self.options]
        command += [f"{self.daemon.url}/{self.source.name}", self.target]
        with Tree(self.daemon.process.pid) as daemon:
            seconds, cost = run_once(command)
        # Here the file is sent by the daemon, and received by the command.
        return seconds, {"client": daemon.cost, "server": cost}

    def close(self):
        self.daemon.close()


class RsyncPush(Peer):
    """The end that has the file pushes it to a daemon, as it must from behind NAT."""

    name = "rsync push"

    def __init__(self, place, net, source, landing):
        super().__init__(source, landing)
        self.at_site = net.at_site
        self.daemon = RsyncDaemon(place, net, net.at_cloud, landing, "write")

    def pull(self):
        command = [*self.at_site, "rsync", "--whole-file", self.source]
        command += [f"{self.daemon.url}/{self.target.name}"]
        with Tree(self.daemon.process.pid) as daemon:
            seconds, cost = run_once(command)
        return seconds, {"client": cost, "server": daemon.cost}

    def close(self):
        self.daemon.close()


class NginxPut(Peer):
    """curl PUTs the file; nginx writes it beside its place, then renames it."""

    name = "nginx PUT"

    def __init__(self, place, net, source, landing, pki=None):
        """With the directory of an authority it speaks TLS, with the server's certificate there."""
        super().__init__(source, landing)
        work = place.room("nginx")
        # On the file system of the destination, or nginx copies each file once more.
        temp = landing / "nginx-body"
        temp.mkdir(exist_ok=True)
        port = net.free_port()
        paths = "".join(
            f"  {kind}_temp_path {work}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
        )
        tls, scheme, self.trust = "", "http", []
        if pki is not None:
            tls = f" ssl;\n    ssl_certificate {pki}/server.pem;\n"
            tls += f"    ssl_certificate_key {pki}/server.key;\n    ssl_protocols TLSv1.3"
            scheme, self.trust = "https", ["--cacert", pki / "roots.pem"]
        # As root the workers would become nobody, who may not write there.
        owner = "user root;\n" if os.getuid() == 0 else ""
        (work / "nginx.conf").write_text(
            f"{owner}daemon off;\nworker_processes 2;\npid {work}/pid;\nerror_log {work}/log;\n"
            f"events {{}}\nhttp {{\n  access_log off;\n  client_max_body_size 0;\n"
            f"  client_body_temp_path {temp};\n{paths}"
            f"  server {{\n    listen {net.host}:{port}{tls};\n    root {landing};\n"
            f"    location / {{ dav_methods PUT; }}\n  }}\n}}\n"
        )
        command = [which("nginx"), "-p", work, "-e", work / "log", "-c", work / "nginx.conf"]
        self.process = start(command, work / "err")
        self.url = f"{scheme}://{net.host}:{port}/{self.target.name}"
        started(self, "nginx listens", lambda: net.listens(port))

    def pull(self):
        with Tree(self.process.pid) as server:
            seconds, cost = run_once(["curl", "-sf", *self.trust, "-T", self.source, self.url])
        return seconds, {"client": cost, "server": server.cost}

    def close(self):
        end(self.process)


class Sshd:
    """An sshd with its own keys, and what an ssh client needs to reach it as `bench`."""

    def __init__(self, place, net):
        work = place.room("ssh")
        self.port = net.free_port()
        for name in ("host", "user"):
            run_once(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name])
        shutil.copy(work / "user.pub", work / "authorized")
        host_key = (work / "host.pub").read_text()
        (work / "known").write_text(f"[{net.host}]:{self.port} {host_key}")
        (work / "sshd_config").write_text(
            f"ListenAddress {net.host}:{self.port}\nHostKey {work}/host\nPidFile none\n"
            f"AuthorizedKeysFile {work}/authorized\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\n"
        )
        self.config = work / "ssh_config"
        self.config.write_text(
            f"Host bench\n  HostName {net.host}\n  Port {self.port}\n  IdentityFile {work}/user\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {work}/known\n  BatchMode yes\n"
        )
        if os.getuid() == 0:
            # The place of its unprivileged half, which a system's own sshd makes at each start.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        command = [*net.at_cloud, which("sshd"), "-D", "-e", "-f", work / "sshd_config"]
        self.process = start(command, work / "err")
        started(self, "sshd listens", lambda: net.listens(self.port))

    def close(self):
        end(self.process)


class Scp(Peer):
    """The end that has the file copies it to an sshd, with the default cipher."""

    name = "scp"
    rounds_max = SLOW_ROUNDS

    def __init__(self, place, net, source, landing):
        super().__init__(source, landing)
        self.at_site = net.at_site
        self.sshd = Sshd(place, net)

    def pull(self):
        command = [*self.at_site, "scp", "-q", "-F", self.sshd.config, self.source]
        command += [f"bench:{self.target}"]
        with Tree(self.sshd.process.pid) as server:
            seconds, cost = run_once(command)
        return seconds, {"client": cost, "server": server.cost}

    def close(self):
        self.sshd.close()


def started(daemon, what, probe):
    """Waits for a daemon, and ends it if it is of no use."""
    try:
        wait_for(what, daemon.process, probe)
    except BaseException:
        daemon.close()
        raise
