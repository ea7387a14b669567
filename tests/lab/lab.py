"""What the cases share: requests that leave from inside a node, exact reading of streams, and `ctl`.

A socket belongs to the network namespace of the thread that makes it, so a case needs no helper process inside a node:
`Http("laptop")` enters laptop's namespace, makes its socket there and comes back. `uid` makes the socket's owner another
user, as the kernel's tables then show it.
"""
import ctypes
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time

LAB_DIR = os.environ["LAB_DIR"]
HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(LAB_DIR, "prefix"), encoding="utf-8") as _f:
    PREFIX = _f.read().strip()
with open(os.path.join(LAB_DIR, "nodes"), encoding="utf-8") as _f:
    NODES = _f.read().split()
APP_USER = 20002
ADDRESS = {n: f"100.64.0.{i + 1}" for i, n in enumerate(NODES)}
APPS, ENGINE, MESH, ADMIN = 11434, 11435, 11436, 11437
_libc = ctypes.CDLL(None, use_errno=True)
_home = os.open("/proc/self/ns/net", os.O_RDONLY)


class Failed(Exception):
    """A promise that did not hold; its text is the case's verdict."""


def check(true, text):
    if not true:
        raise Failed(text)


def equal(got, want, what):
    check(got == want, f"{what}: {got!r}, not {want!r}")


def wait(seconds, what, ready, every=0.05):
    """Returns how long it took until `ready()` was true."""
    began = time.monotonic()
    while True:
        try:
            if ready():
                return time.monotonic() - began
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            pass
        check(time.monotonic() - began < seconds, f"{what}: not within {seconds} s")
        time.sleep(every)


def _setns(fd):
    if _libc.setns(fd, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def sock(node, uid=None, kind=socket.SOCK_STREAM, family=socket.AF_INET, proto=0):
    """A socket inside the node's network namespace."""
    ns = os.open(f"/run/netns/{PREFIX}-{node}", os.O_RDONLY)
    try:
        _setns(ns)
        try:
            s = socket.socket(family, kind, proto)
        finally:
            _setns(_home)
    finally:
        os.close(ns)
    if uid is not None:
        os.fchown(s.fileno(), uid, -1)
    return s


def plain_connect(node, other):
    """The control of what is bound to the tailnet's device: tries the other's mesh port by a socket bound to nothing."""
    s = sock(node)
    s.settimeout(0.5)
    try:
        s.connect((ADDRESS[other], MESH))
    except OSError:
        pass
    s.close()


class Answer:
    """A whole answer: status, headers (lower case names), body as bytes, seconds to the head and to the end."""

    def __init__(self, status, headers, body, head_s, total_s):
        self.status, self.headers, self.body = status, headers, body
        self.head_s, self.total_s = head_s, total_s

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def lines(self):
        return [json.loads(l) for l in self.body.splitlines() if l.strip()]

    @property
    def by(self):
        return self.headers.get("x-tailherd-served-by", "").split("/")[0]


def heads(response):
    """The head of a response: lower case names, repeated ones joined."""
    out = {}
    for k, v in response.getheaders():
        k = k.lower()
        out[k] = f"{out[k]}, {v}" if k in out else v
    return out


class Http:
    """One HTTP/1.1 connection from inside a node, as one of its ordinary programs would make it. `to` defaults to the
    node's own 127.0.0.1."""

    def __init__(self, node, port=APPS, to="127.0.0.1", uid=APP_USER, timeout=60):
        self.c = http.client.HTTPConnection(to, port, timeout=timeout)
        self.node, self.uid, self.timeout = node, uid, timeout
        self.c._create_connection = self._connect

    def _connect(self, address, timeout=None, source_address=None):
        s = sock(self.node, self.uid)
        try:
            s.settimeout(self.timeout)
            s.connect(address)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            s.close()
            raise
        return s

    def start(self, method, path, body=None, headers=None):
        """Sends a request and returns the response with its body still to be read."""
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        self.began = time.monotonic()
        self.c.request(method, path, body, headers)
        r = self.c.getresponse()
        self.head_s = time.monotonic() - self.began
        return r

    def ask(self, method, path, body=None, headers=None):
        r = self.start(method, path, body, headers)
        data = r.read()
        return Answer(r.status, heads(r), data, self.head_s, time.monotonic() - self.began)

    def close(self):
        self.c.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ask(node, method, path, body=None, headers=None, **kw):
    with Http(node, **kw) as h:
        return h.ask(method, path, body, headers)


def get(node, path, headers=None, **kw):
    return ask(node, "GET", path, None, headers, **kw)


def post(node, path, body, headers=None, **kw):
    return ask(node, "POST", path, body, headers, **kw)


def generate(node, model, n=3, **kw):
    """One whole native answer of `n` tokens."""
    return post(node, "/api/generate", {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": n}}, **kw)


def numbers(response, stop_at=None):
    """The numbers of a streamed native answer of `count`, in order, until its end or until `stop_at` of them."""
    got = []
    for line in response:
        item = json.loads(line)
        check("error" not in item, f"error in the stream: {item.get('error')}")
        got += [int(w) for w in item.get("response", "").split()]
        if stop_at and len(got) >= stop_at:
            return got
        if item.get("done"):
            check(not response.read(), "bytes after the last line")
            return got
    raise Failed(f"the stream ended without its last line after {len(got)} numbers")


def counted(n):
    """What `count` says with num_predict n: 1 … 400, again and again."""
    return [i % 400 + 1 for i in range(n)]


def models(node, port=APPS):
    return {m["name"].removesuffix(":latest") for m in get(node, "/api/tags", port=port).json["models"]}


def loaded(node, port=ENGINE):
    return {m["name"].removesuffix(":latest") for m in get(node, "/api/ps", port=port).json["models"]}


def believed(node):
    """What the node's tailherd believes its engine has loaded: it looks every 2 s."""
    models = get(node, "/status", port=ADMIN).json["models"]
    return {m["name"].removesuffix(":latest") for m in models for o in m["offers"] if o["peer"] == node and o["loaded"]}


def unload(node, *names):
    """Has the node's own models unloaded, as `ollama stop` there would, and waits until its tailherd knows."""
    herd = "LAB_NO_HERD" not in os.environ
    gone = set(names) or loaded(node)
    for m in gone:
        post(node, "/api/generate", {"model": m, "keep_alive": 0}, port=APPS if herd else ENGINE)
    wait(10, f"{node} unloads", lambda: not gone & loaded(node))
    if herd:
        wait(10, f"tailherd of {node} sees what was unloaded", lambda: not (gone & believed(node) if names else believed(node)))


def load(node, *names):
    for m in names:
        equal(post(node, "/api/generate", {"model": m, "keep_alive": "10m"}, port=ENGINE).status, 200, f"load of {m} on {node}")


def metric(node, name, **labels):
    """Sum of a metric family's values over the label sets that hold `labels`, from the node's own admin port."""
    total = 0.0
    for line in get(node, "/metrics", port=ADMIN).text.splitlines():
        if line.startswith(name + "{") or line.startswith(name + " "):
            if all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
    return total


def ctl(*args, ok=True, timeout=120, **kw):
    r = subprocess.run([os.path.join(HERE, "ctl"), *args], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **kw)
    if ok:
        check(r.returncode == 0, f"ctl {' '.join(args)}: {r.stderr.strip()[-300:]}")
    return r


def run_in(node, argv, uid=0, env=None, timeout=60, stdin=None):
    """A real process inside the node (network and mounts), as another user if asked."""
    with open(os.path.join(LAB_DIR, node, "holder.pid"), encoding="utf-8") as f:
        pid = f.read().strip()
    cmd = ["nsenter", "-t", pid, "-m", "-n", "--"]
    if uid:
        cmd += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    return subprocess.run(cmd + argv, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})},
                          stdin=subprocess.DEVNULL if stdin is None else stdin)


class Later(threading.Thread):
    """A request in the background: `Later(lambda: generate(…)).result()`."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.value, self.error, self.ended = work, None, None, None
        self.start()

    def run(self):
        try:
            self.value = self.work()
        except BaseException as e:  # handed to whoever asks for the result
            self.error = e
        self.ended = time.monotonic()

    def result(self, seconds=60):
        self.join(seconds)
        check(not self.is_alive(), f"no answer within {seconds} s")
        if self.error:
            raise self.error
        return self.value


def case(body):
    """Runs a case: its return value is the line of figures, a `Failed` its verdict."""
    try:
        print(body() or "", flush=True)
    except Failed as e:
        print(e, file=sys.stderr, flush=True)
        os._exit(1)
    except Exception as e:
        import traceback

        traceback.print_exc()
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
