"""What the ladder's cases share: a steady asker, what `status` says of rung, paths and pins, and what a wire carried."""
import ipaddress
import json
import os
import socket
import struct
import threading
import time
from datetime import datetime, timezone

from lab import ADMIN, Failed, LAB_DIR, NODES, Http, check, counted, ctl, generate, get, metric, numbers, sock, wait

LAN = {n: f"10.77.0.{11 + i}" for i, n in enumerate(NODES)}
LAN_PORT = 11436
TAILNET = ipaddress.ip_network("100.64.0.0/10")
BY = {"mine": "laptop", "second": "desk", "tiny": "gpu", "count": "gpu", "theirs": "colleague", "third": "attic"}


# ---- what a node says of itself -----------------------------------------------------------------
def status(node):
    return get(node, "/status", port=ADMIN, timeout=5).json


def rung(node):
    return status(node)["rung"]


def peer(node, name, told=None):
    """The one row of a peer; two rows of one name are a defect wherever they are seen."""
    rows = [p for p in (told or status(node))["peers"] if p["name"] == name]
    check(len(rows) < 2, f"{node} lists {name} {len(rows)} times")
    return rows[0] if rows else {"path": None, "paths": []}


def path(node, name):
    """The kind of path a request to this peer takes first: tailnet, lan or None."""
    return peer(node, name)["path"]


def ways(node, name):
    """State of each way to the peer by kind, e.g. {"tailnet": "up", "lan": "standby"}; the best of a kind counts."""
    paths = sorted(peer(node, name)["paths"], key=lambda p: ("up", "standby", "down").index(p["state"]), reverse=True)
    return {p["kind"]: p["state"] for p in paths}


def when(text):
    """A time of `status` as seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc).timestamp()


def on_rung(node, want, seconds, since=None):
    """Waits for the rung and returns the seconds since `since` (monotonic; default: now)."""
    began = since if since is not None else time.monotonic()
    wait(seconds - (time.monotonic() - began), f"{node} says {want} (last: {status(node)['rung']} {status(node)['why']})", lambda: rung(node) == want)
    return time.monotonic() - began


def reaches(node, model, seconds, since=None, kind=None):
    """Waits until the node is answered by the one that has the model, over this kind of path if named."""
    began = since if since is not None else time.monotonic()

    last = ""

    def answered():
        nonlocal last
        a = generate(node, model, n=1, timeout=10)
        way = path(node, BY[model])
        last = f"{a.status} by {a.by}, then the way was {way}"
        return a.status == 200 and a.by == BY[model] and kind in (None, way)

    try:
        wait(seconds - (time.monotonic() - began), f"{node} is answered for {model}{f' over {kind}' if kind else ''}", answered, every=0.1)
    except Failed as e:
        raise Failed(f"{e} (last: {last})") from None
    return time.monotonic() - began


def log(node, since=0):
    with open(os.path.join(LAB_DIR, node, "tailherd.log"), encoding="utf-8", errors="replace") as f:
        f.seek(since)
        return f.read()


def log_end(node):
    return os.path.getsize(os.path.join(LAB_DIR, node, "tailherd.log"))


def pid(node, what="tailherd"):
    with open(os.path.join(LAB_DIR, node, f"{what}.pid"), encoding="utf-8") as f:
        return int(f.read())


# ---- a steady asker -----------------------------------------------------------------------------
class Steady:
    """Asks for models in turn, five times a second, each request on its own, whatever became of the others. A request that
    is not answered with 200 by the node that has the model has failed."""

    def __init__(self, node, *models, rate=5.0, n=3):
        self.node, self.models, self.rate, self.n = node, models, rate, n
        self.told, self.threads, self.over = [], [], threading.Event()
        self.began = time.monotonic()
        self.clock = threading.Thread(target=self._run, daemon=True)
        self.clock.start()

    def _run(self):
        i = 0
        while not self.over.wait(max(0.0, self.began + i / self.rate - time.monotonic())):
            t = threading.Thread(target=self._one, args=(self.models[i % len(self.models)],), daemon=True)
            t.start()
            self.threads.append(t)
            i += 1

    def _one(self, model):
        at = time.monotonic()
        try:
            a = generate(self.node, model, n=self.n, timeout=60)
            bad = None if (a.status, a.by) == (200, BY.get(model, a.by)) else f"{a.status} by {a.by or 'nobody'}: {a.text[:160]}"
        except Exception as e:  # whatever it was, nobody was answered
            bad = f"{type(e).__name__}: {e}"
        self.told.append((at - self.began, time.monotonic() - at, model, bad))

    def stop(self):
        """Ends it and waits for what is under way. Returns itself."""
        self.over.set()
        self.clock.join()
        for t in self.threads:
            t.join(70)
        self.told.sort()
        return self

    @property
    def failures(self):
        return [x for x in self.told if x[3]]

    def none_failed(self):
        bad = self.failures
        check(not bad, f"{len(bad)} of {len(self.told)} requests failed; first after {bad[0][0]:.1f} s, {bad[0][2]}: {bad[0][3]}" if bad else "")
        check(len(self.told) > 5, f"only {len(self.told)} requests: this case shows nothing")
        return f"{len(self.told)} requests, 0 failed, slowest {max(x[1] for x in self.told):.2f} s"


# ---- packets ------------------------------------------------------------------------------------
def uncount(*nodes):
    for n in nodes or NODES:
        for name in ("leak", "ours"):
            ctl("recount", n, name)


def packets(node, name="leak"):
    return int(ctl("counted", node, name).stdout.split()[0])


class Frame:
    """What one Ethernet frame is, as far as the cases ask."""

    def __init__(self, raw):
        self.raw = raw
        self.dst, self.src = raw[0:6].hex(":"), raw[6:12].hex(":")
        self.kind = struct.unpack("!H", raw[12:14])[0]
        self.proto = self.to = self.of = self.sport = self.dport = None
        self.asks = None  # an ARP request's question
        if self.kind == 0x0806 and raw[20:22] == b"\0\1":
            self.asks = socket.inet_ntoa(raw[38:42])
        elif self.kind == 0x0800:
            ip = raw[14:]
            head = (ip[0] & 15) * 4
            self.proto, self.of, self.to = ip[9], socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])
            if self.proto in (6, 17):
                self.sport, self.dport = struct.unpack("!HH", ip[head:head + 4])
        elif self.kind == 0x86DD:
            ip = raw[14:]
            self.proto, self.of, self.to = ip[6], socket.inet_ntop(socket.AF_INET6, ip[8:24]), socket.inet_ntop(socket.AF_INET6, ip[24:40])
            if self.proto in (6, 17):
                self.sport, self.dport = struct.unpack("!HH", ip[40:44])

    def __repr__(self):
        return f"{self.src} {self.of}:{self.sport} > {self.to}:{self.dport} proto {self.proto} kind {self.kind:#x} asks {self.asks}"


class Wire(threading.Thread):
    """Everything that passes one interface of a namespace, until `stop`."""

    def __init__(self, where, device="eth0"):
        super().__init__(daemon=True)
        self.s = sock(where, kind=socket.SOCK_RAW, family=socket.AF_PACKET, proto=socket.htons(3))
        self.s.bind((device, 0))
        self.s.settimeout(0.2)
        self.frames, self.over = [], False
        self.start()

    def run(self):
        while not self.over:
            try:
                self.frames.append(Frame(self.s.recv(65536)))
            except TimeoutError:
                pass

    def stop(self):
        self.over = True
        self.join()
        self.s.close()
        return self.frames


def knocks(frames, node, other):
    """Connections that a node asked for at another's LAN port."""
    first = lambda f: f.kind == 0x0800 and f.proto == 6 and f.raw[14 + (f.raw[14] & 15) * 4 + 13] & 0x12 == 2
    return sum(f.of == LAN[node] and f.to == LAN[other] and f.dport == LAN_PORT and first(f) for f in frames)


def outside(frames):
    """What went to a tailnet address and was in no tunnel."""
    return [f for f in frames if f.to and f.kind == 0x0800 and ipaddress.ip_address(f.to) in TAILNET]


def mac(node):
    return json.loads(ctl("exec", node, "ip", "-j", "link", "show", "eth0").stdout)[0]["address"]


# ---- policy -------------------------------------------------------------------------------------
def policy(grants=None, **more):
    """Another policy for Headscale: the default one with these grants, and whatever else is named."""
    text = {"tagOwners": {"tag:ollama": ["me@"]}, "grants": grants or [{"src": ["*"], "dst": ["*"], "ip": ["*"]}], **more}
    file = os.path.join(LAB_DIR, "policy.json")
    with open(file, "w", encoding="utf-8") as f:
        json.dump(text, f)
    ctl("policy", file)


def keep_netmaps():
    """Has every tailscaled keep its netmap for a start without the coordinator, and waits until each has."""
    policy(nodeAttrs=[{"target": ["*"], "attr": ["cache-network-maps"]}])
    kept = lambda n: any("netmap-cache" in d and f for d, _, f in os.walk(os.path.join(LAB_DIR, n, "state")))
    for n in NODES:
        wait(20, f"{n} keeps its netmap", lambda: kept(n))


def api(node, rest):
    """LocalAPI of the node's tailscaled."""
    return json.loads(ctl("api", node, f"/localapi/v0/{rest}").stdout)


# ---- pins ---------------------------------------------------------------------------------------
def pin(node, name, told=None):
    """The node's pin of a peer, or None."""
    return next((p for p in (told or status(node))["pins"] if p["name"] == name), None)


def pinned(node, *names):
    """Waits until the node has a live pin of each."""
    for name in names:
        wait(30, f"{node} has a live pin of {name}", lambda: (pin(node, name) or {}).get("state") == "live")


def configured(node, **config):
    """Starts the node's tailherd anew with this configuration; `heal` takes it away."""
    file = os.path.join(LAB_DIR, f"config-{node}.json5")
    with open(file, "w", encoding="utf-8") as f:
        json.dump(config, f)
    ctl("configure", node, file)


def refused_on_lan(node, reason=None):
    return metric(node, "tailherd_refused_total", listener="lan", **({"reason": reason} if reason else {}))


class Streams:
    """Whole streams of `count`, one after the other, each number looked at, until `stop`."""

    def __init__(self, node, model, by, n=2000):
        self.node, self.model, self.by, self.n = node, model, by, n
        self.whole, self.error, self.over = 0, None, False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            while not self.over:
                with Http(self.node) as h:
                    r = h.start("POST", "/api/generate", {"model": self.model, "prompt": "x", "options": {"num_predict": self.n}})
                    check(r.status == 200, f"{r.status} {r.read()[:160]!r}" if r.status != 200 else "")
                    by = r.getheader("x-tailherd-served-by", "").split("/")[0]
                    check(by == self.by, f"served by {by}")
                    check(numbers(r) == counted(self.n), "numbers lost, doubled or reordered")
                self.whole += 1
        except Exception as e:
            self.error = e

    def stop(self):
        self.over = True
        self.thread.join(60)
        check(self.error is None, f"a stream {self.node} > {self.by} of {self.model}: {self.error}")
        check(self.whole > 0 and not self.thread.is_alive(), f"no stream {self.node} > {self.by} came to its end")
        return f"{self.whole} streams {self.node} > {self.by} whole"
