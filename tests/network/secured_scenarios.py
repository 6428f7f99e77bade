"""What must hold where the server asks for TLS and credentials: see `secured.py`."""

import contextlib
import functools
import json
import pathlib
import socket
import ssl
import time

import man_in_the_middle as middle
from pair import BACK_S, CLIENT, PATIENCE_S, UPLOAD_RATE
from rig import ASIDE, CLOUD, PORT, SITE, Failed, Program, inside, run, until
from secured import NOT_LET_IN, ROOTS, SERVER_URL, Secured, expect, tool

README = pathlib.Path(__file__).parents[2] / "README.md"

# The shortest that certificates may last.
LIFE = "60s"
# A revocation is to be felt within this.
REVOKED_S = 10
PROXY_PORT, PROXY_USER, PROXY_PASSWORD = 8888, "site", "pass-of-the-proxy"
DAY_S = 24 * 3600
AT_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


# --- From two empty machines to a first file ---


def production(pair):
    """Each command of the README's chapter "In production", in its order, where it says."""
    source = pair.share / "syslog"
    source.write_bytes(bytes(range(256)) * 4000)
    for command in commands_of_readme():
        needed = command.replace("FTS_TOKEN=$(cat admin.token) ", "").split()[0]
        if needed.startswith("fts") or tool("production", needed):
            play_of_readme(pair, command)

    run("cmp", str(source), str(pair.place / "office/syslog"))
    pair.measured["commands"] = len(commands_of_readme())
    for transfer in pair.operator.ask("GET", "/transfers")["transfers"]:
        pair.asked[transfer["id"]] = source
    if " ONLINE " not in pair.listed():
        raise Failed(pair.listed())
    nothing_without_credentials(pair)


def commands_of_readme():
    """Of its chapter "In production", without comments."""
    text = README.read_text().split("\n## In production\n")[1].split("\n## ")[0]
    # Every other part is between fences; a fence with the name of a language begins no commands.
    fenced = text.split("```")[1::2]
    typed = "".join(part for part in fenced if part.startswith("\n"))
    lines = typed.replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line]


def play_of_readme(pair, command):
    names = (("fts.example.com", CLOUD), ("/var/log", str(pair.share)))
    for theirs, ours in names:
        command = command.replace(theirs, ours)
    match command.split():
        case ["fts-server", "--listen", *_]:
            pair.start_server()
        case ["fts-client"]:
            until("the client registers", PATIENCE_S, pair.start_client())
        case ["fts-server", "init", *_]:
            pair.typed("cloud", command)
            pair.know_server((pair.place / "cloud/admin.token").read_text())
            bring_to_operator(pair)
        case ["fts-server", "token", *_]:
            pair.typed("cloud", command)
            token = (pair.place / "cloud/web-1.token").read_text()
            pair.keep(pair.place / "site/web-1.token", token)
        case ["fts-client", *_]:
            pair.typed("site", command)
        case ["curl", *_]:
            [client] = json.loads(pair.typed("office", command).stdout)["clients"]
            expect(CLIENT, client["id"])
        case [*words] if "grpcurl" in words:
            expect("STATE_QUEUED", pair.typed("office", command).stdout)
        case _:
            pair.typed("office", command)


def bring_to_operator(pair):
    token = (pair.place / "cloud/admin.token").read_text()
    pair.keep(pair.place / "office/admin.token", token)
    pair.keep(pair.place / "office/token.header", f"authorization: Bearer {token}")
    (pair.place / "office/ca.pem").write_text((pair.place / "cloud" / ROOTS).read_text())


def nothing_without_credentials(pair):
    """From the outside, by whoever knows the address and the root, which are no secrets."""
    before = pair.operator.ask("GET", "/transfers")
    stranger = {"HOME": "/nonexistent"}
    ca = ("--ca", "ca.pem", "--server", SERVER_URL)
    for words in (("clients",), ("pull", CLIENT), ("transfers",), ("watch",)):
        pair.in_office("fts", *ca, *words, status=77, **stranger)
    # A token is good for one machine; and without one there is no identity.
    used = pair.join("--force", status=77, who="office", **stranger, XDG_STATE_HOME="/nonexistent")
    expect("the join token is not good, or no longer", used.stderr)
    words = ("fts-client", "--server", SERVER_URL, "--allow", pair.share)
    without = pair.on_site(*words, status=78, who="office")
    expect("no identity for it: run fts-client join", without.stderr)
    if tool("production", "curl"):
        for method, path, status in (
            ("GET", "/healthz", 200),
            ("GET", "/clients", 401),
            ("GET", "/transfers", 401),
            ("POST", f"/download/{CLIENT}", 401),
            ("GET", "/metrics", 401),
            ("GET", "/openapi.json", 401),
            ("GET", "/", 401),
        ):
            words = ("--silent", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", "ca.pem")
            told = pair.in_office("curl", *words, "-X", method, SERVER_URL + path).stdout
            if told != str(status):
                raise Failed(f"{method} {path} without credentials: {told}, and not {status}")
        # Who does not know the root is not known to be nobody: 60 is what curl makes of it.
        pair.in_office("curl", "--silent", f"{SERVER_URL}/healthz", status=60)
        plain = pair.in_office("curl", "--silent", f"http://{CLOUD}:{PORT}/healthz", status=None)
        if plain.returncode == 0 and plain.stdout.strip() == "ok":
            raise Failed("it answers in clear text")
    if pair.operator.ask("GET", "/transfers") != before:
        raise Failed("somebody without credentials has changed something")


# --- A man in the middle ---

UNTRUSTED = "the server's certificate does not lead to what is trusted here"
SHOWN = {
    "self-signed": (middle.self_signed, f"{UNTRUSTED}|is it self-signed"),
    "another-authority": (middle.of_another_authority, UNTRUSTED),
    "no-key": (middle.without_its_key, UNTRUSTED),
}
# In the server's first flight: in its hello, and in what is encrypted.
FLIPPED = {"hello": 60, "encrypted": 900}


def mitm(attend, words, pair):
    """Nobody tells him anything, each says why, and all goes on when he has left."""
    pair.joined_client()
    pair.log_in()
    pair.token("--replace")
    own = pair.place / "man"
    own.mkdir()
    man = middle.ManInTheMiddle(pair.rig, attend(own, pair.place / "cloud/fts-data/pki/server.pem"))
    sessions, known = pair.sessions(), len(pair.reasons())
    # The session that there was goes on by no rule of the router.
    pair.rig.forget()

    asked = pair.trigger()
    told = [pair.join("--force", status=69, who="office").stderr]
    told.append(pair.on_site("fts", "clients", status=69, who="office").stderr)
    met = man.met
    until("the client says why", PATIENCE_S, lambda: why(pair, known) and man.met > met)
    told.append(why(pair, known))

    for text in told:
        expect(words, text)
    if met < 2 or man.read or pair.sessions() != sessions:
        raise Failed(f"{man.met} came to him, he read {man.read!r}, {pair.sessions()} sessions")
    if pair.transfer(asked)["received_bytes"] or pair.transfer(asked)["state"] == "COMPLETE":
        raise Failed(f"a file came through him: {pair.transfer(asked)}")
    pair.recovers(man.leave)


def why(pair, known):
    """Why there is no session, but for the first, which the router ended."""
    reasons = pair.reasons()[known:]
    return next((reason for reason in reasons if "cannot open a session" in reason), None)


def showing(make, place, chain):
    return middle.terminator(*make(place, chain))


def flipping(at, _place, _chain):
    return middle.flipper(at)


# --- A proxy is the only way out ---


def proxy(pair):
    daemon = start_proxy(pair)
    try:
        through_proxy(pair)
    finally:
        daemon.end()


def start_proxy(pair):
    configuration, log = pair.place / "tinyproxy.conf", pair.place / "proxy.log"
    configuration.write_text(
        f"Port {PROXY_PORT}\nListen {ASIDE}\nAllow {SITE[0]}\nConnectPort {PORT}\n"
        f'BasicAuth {PROXY_USER} {PROXY_PASSWORD}\nLogFile "{log}"\nLogLevel Connect\n'
    )
    command = ["tinyproxy", "-d", "-c", configuration]
    daemon = Program(pair.rig.aside, pair.place / "tinyproxy.log", command)
    until("the proxy listens", PATIENCE_S, lambda: dialled(pair, ASIDE, PROXY_PORT))
    return daemon


def dialled(pair, address, port):
    """Whether the site reaches it."""
    with inside(pair.rig.site), contextlib.suppress(OSError):
        socket.create_connection((address, port), timeout=1).close()
        return True
    return False


def proxy_url(password):
    return f"http://{PROXY_USER}:{password}@{ASIDE}:{PROXY_PORT}"


def through_proxy(pair):
    wrong = {"HTTPS_PROXY": proxy_url("no-" + PROXY_PASSWORD)}
    right = {"HTTPS_PROXY": proxy_url(PROXY_PASSWORD)}
    none = {"HTTPS_PROXY": f"http://{ASIDE}:{PROXY_PORT}"}
    refused = f"the proxy http://{ASIDE}:{PROXY_PORT} .*password"
    pair.token()
    # While the site has another way out, NO_PROXY is the way around a proxy.
    for each in (none, wrong):
        expect(refused, pair.join(status=69, who="office", **each).stderr)
    pair.join(who="office", **wrong, NO_PROXY=f"example.com,{CLOUD}")
    pair.rig.wall_off()
    if dialled(pair, CLOUD, PORT):
        raise Failed("the site has another way out: this proves nothing")
    pair.token("--replace")
    flag = pair.join("--proxy", proxy_url(PROXY_PASSWORD), status=78)
    expect("password", flag.stderr)
    if PROXY_PASSWORD in flag.stderr + flag.stdout:
        raise Failed("it shows the password of the proxy")

    pair.join(**right)
    pair.start_client(**wrong)
    until("the client says why", PATIENCE_S, lambda: pair.reasons())
    expect(refused, pair.reasons()[0])
    pair.client.end()
    until("the client registers", PATIENCE_S, pair.start_client(**right))
    pair.complete(pair.trigger(), BACK_S, time.monotonic())

    log = (pair.place / "proxy.log").read_text()
    pair.measured["tunnels"] = log.count(f"CONNECT {CLOUD}:{PORT}")
    pair.secrets.append(PROXY_PASSWORD)
    # While the client runs.
    pair.keeps_secrets()


# --- A client is revoked ---


def revoked(pair):
    """What it does ends at once; it comes back by a new token only."""
    pair.errors.append(NOT_LET_IN)
    pair.joined_client(UPLOAD_RATE)
    pair.log_in()
    upload = pair.upload()

    pair.in_cloud("fts-server", "clients", "revoke", CLIENT)

    began = time.monotonic()
    offline = lambda: pair.presence() == "OFFLINE"
    pair.measured["OFFLINE"] = until("the session ends", REVOKED_S, offline, began)[1]
    stopped = lambda: pair.transfer(upload)["state"] == "INTERRUPTED"
    pair.measured["upload over"] = until("the upload ends", REVOKED_S, stopped, began)[1]
    if " OFFLINE " not in pair.listed():
        raise Failed(pair.listed())
    told = lambda: pair.reasons(NOT_LET_IN)
    expect("was revoked", until("the client says why", PATIENCE_S, told)[0][-1])
    received = pair.transfer(upload)["received_bytes"]
    # One that joined before does not come back by a token for new ones.
    pair.client.end()
    pair.token()
    pair.join("--force", status=77)
    until("and it is not let in", PATIENCE_S, is_not_let_in_again(pair))
    if pair.transfer(upload)["received_bytes"] != received:
        raise Failed("a revoked client has sent more")

    pair.client.end()
    pair.token("--replace")
    pair.join("--force")
    pair.start_client()
    pair.complete(upload, BACK_S, time.monotonic())
    pair.measured["attempts"] = pair.transfer(upload)["attempts"]


def is_not_let_in_again(pair):
    known = len(pair.reasons(NOT_LET_IN))
    pair.start_client()
    return lambda: len(pair.reasons(NOT_LET_IN)) > known


# --- A certificate is over ---


def offline_renewal(how, pair):
    """Its key proves who it is, and no operator is needed."""
    pair.joined_client()
    pair.complete(pair.trigger(), BACK_S, time.monotonic())
    if how == "stopped":
        pair.client.end()
    else:
        pair.rig.cut("both")
    renewed = len(pair.client.lines("renewed the certificate of this client"))
    asked = pair.trigger()
    time.sleep(max(0, ends_at(pair) + 2 - time.time()))

    back_at = time.monotonic()
    if how == "stopped":
        pair.start_client()
    else:
        pair.rig.mend()
    pair.measured["back"] = pair.complete(asked, BACK_S, back_at)
    if len(pair.client.lines("renewed the certificate of this client")) == renewed:
        raise Failed("it was not renewed")
    if how == "stopped" and not pair.client.lines(
        "the certificate of this client has expired: it is renewed first"
    ):
        raise Failed("the certificate was not over: this proves nothing")


def ends_at(pair):
    """Until when the client's certificate is good."""
    identity = pair.place / f"site/.local/state/fts-client/{CLIENT}/identity.pem"
    told = run("openssl", "x509", "-in", str(identity), "-enddate", "-noout")
    return ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))


# --- A clock is wrong ---


def wrong_clock(pair):
    """It is told, with both times; and one that is ahead delivers all the same."""
    pair.joined_client()
    pair.client.end()

    pair.start_client(**clock("+1d"))
    told = until("the clock is told", PATIENCE_S, lambda: clock_problem(pair))[0]
    here, server = expect(f"says ({AT_TIME}), the server's ({AT_TIME})", told).groups()
    is_off_by_a_day(here, server)
    pair.complete(pair.trigger(), BACK_S, time.monotonic())
    pair.client.end()

    known = len(pair.reasons())
    pair.start_client(**clock("-1d"))
    told = until("the clock is told", PATIENCE_S, lambda: pair.reasons()[known:])[0][0]
    pattern = f"not valid before ({AT_TIME}); if that is not so, .* it says ({AT_TIME})"
    is_off_by_a_day(*expect(pattern, told).groups())
    pair.client.end()
    asked = pair.trigger()
    pair.start_client()
    pair.complete(asked, BACK_S, time.monotonic())


def clock_problem(pair):
    messages = (line["message"] for line in pair.client.lines())
    return next((each for each in messages if "the clock of this machine" in each), None)


def clock(offset):
    """What makes a program's clock wrong. Deadlines are not of that clock, and stay right."""
    # faketime itself stays the parent of what it runs, and does not end it.
    preload = run("faketime", "-f", offset, "printenv", "LD_PRELOAD").strip()
    return {"LD_PRELOAD": preload, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def is_off_by_a_day(late, early):
    as_s = lambda text: time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
    # Servers' certificates begin a little earlier than they were made.
    if not DAY_S - 600 < as_s(late) - as_s(early) < DAY_S + 600:
        raise Failed(f"{early} and {late}: those are not the times")


# --- All of them ---


def plays():
    """What is played, with which pair, and the programs that it needs."""
    brief = functools.partial(Secured, certificate_life=LIFE)
    empty = functools.partial(Secured, is_made=False)
    found = {
        "production": (production, empty, ()),
        "proxy": (proxy, Secured, ("tinyproxy",)),
        "revoked": (revoked, Secured, ()),
        "wrong-clock": (wrong_clock, brief, ("faketime",)),
    }
    for how in ("stopped", "cut"):
        play = functools.partial(offline_renewal, how)
        found[f"offline-renewal-{how}"] = (play, brief, ("openssl",))
    for name, (make, words) in SHOWN.items():
        play = functools.partial(mitm, functools.partial(showing, make), words)
        found[f"mitm-{name}"] = (play, Secured, ("openssl",))
    for name, at in FLIPPED.items():
        play = functools.partial(mitm, functools.partial(flipping, at), "was changed on the way")
        found[f"mitm-flipped-{name}"] = (play, Secured, ())
    return found
