"""Asks every case twice, of Ollama itself and through tailherd, and gives each a verdict."""
import os
import signal
import time

from lab import ENGINE, LAB_DIR, NODES, Answer, Http, Later, ask, heads, post, unload
from . import differences, plain, rows


# Heads that tailherd adds to every answer, or to every one that it tried everything for.
OURS = {"x-request-id", "x-content-type-options", "x-should-retry"}


class Verdict:
    """One line of the matrix. kind: equal, intended (with the difference's name) or unequal (with where they part)."""

    def __init__(self, case, kind, note="", seconds=0.0):
        self.case, self.kind, self.note, self.seconds = case, kind, note, seconds


def _one(node, port, case, engine_node):
    name, method, path, body, headers = case
    if name.startswith("kill-"):
        return _killed(node, port, case, engine_node)
    return ask(node, method, path, body, headers, port=port, timeout=30)


def runners(node):
    """Process ids of the node's running engines: children of its Ollama."""
    with open(f"{LAB_DIR}/{node}/ollama.pid", encoding="utf-8") as f:
        parent = f.read().strip()
    with open(f"/proc/{parent}/task/{parent}/children", encoding="utf-8") as f:
        kids = f.read().split()
    for task in os.listdir(f"/proc/{parent}/task"):
        try:
            with open(f"/proc/{parent}/task/{task}/children", encoding="utf-8") as f:
                kids += f.read().split()
        except FileNotFoundError:
            pass
    return sorted({int(k) for k in kids})


def _killed(node, port, case, engine_node):
    """The engine's process is killed in the middle of its answer: a stream's after twenty tokens, a whole one's after 0.4 s."""
    name, method, path, body, headers = case
    unload(engine_node)
    post(engine_node, "/api/generate", {"model": "count", "keep_alive": "10m"}, port=ENGINE)
    if body.get("stream") is False:
        later = Later(lambda: ask(node, method, path, body, headers, port=port, timeout=30))
        time.sleep(0.4)
        _kill(engine_node)
        return later.result(30)
    with Http(node, port=port, timeout=30) as h:
        r = h.start(method, path, body, headers)
        data = b""
        while data.count(b"\n") < 60:
            more = r.read1(4096)
            if not more:
                break
            data += more
        _kill(engine_node)
        data += r.read()
        return Answer(r.status, heads(r), data, h.head_s, 0.0)


def _kill(node):
    for pid in runners(node):
        os.kill(pid, signal.SIGKILL)


def _tail(p):
    """How a killed stream ends: the items after the last one that carries a token."""
    body = p["body"]
    if isinstance(body, list):
        def token(i):
            text = str(i)
            return any(f"' {n}'" in text for n in range(1, 401))
        last = max((k for k, i in enumerate(body) if token(i)), default=-1)
        p = {**p, "body": body[last + 1:], "tokens": last > 0}
    return p


def run(through, direct, who, only=None):
    """through: (node, port) asked as a client would; direct: the node whose Ollama is the model. Returns the verdicts.

    First every case directly, then every case through: a case may change what the next one sees, equally in both.
    """
    cases = [c for c in rows.CASES if not only or c[0] in only]
    unload(direct)
    wanted = [plain.plain(_one(direct, ENGINE, c, direct)) for c in cases]
    for n in NODES:
        unload(n)
    out = []
    for case, want in zip(cases, wanted):
        began = time.monotonic()
        out.append(_judge(case, who, want, through, direct))
        out[-1].seconds = time.monotonic() - began
    return out


def _judge(case, who, d, through, direct):
    name = case[0]
    until = time.monotonic() + rows.TRAILS.get(name, 0)
    while True:
        try:
            t = plain.plain(_one(*through, case, direct))
        except Exception as e:  # a connection cut short is a verdict, not a crash of the matrix
            return Verdict(name, "unequal", f"no answer: {type(e).__name__}: {e}")
        if name.startswith("kill-"):
            d, t = _tail(d), _tail(t)
        t["head"] = {k: v for k, v in t["head"].items() if not k.startswith("x-tailherd-") and k not in OURS}
        where = plain.first_difference(d, t)
        if where is None:
            return Verdict(name, "equal")
        named, reasons = differences.explain(name, who, d, t)
        if named:
            return Verdict(name, "intended", named)
        if time.monotonic() >= until:
            return Verdict(name, "unequal", "; ".join([where] + reasons))
        time.sleep(0.3)
