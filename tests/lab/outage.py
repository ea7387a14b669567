"""A peer falls silent while a request waits there without a byte, and while lists are asked for."""
import os
import signal
import statistics
import time

from matrix.ask import runners
from lab import Later, check, equal, generate, get, load, metric, models, run_in, unload, wait

LIMIT = 1.5


def waiting_at(model="shared"):
    """The node whose gate has a request for the model, started or waiting for its turn."""
    for n in ("gpu", "nas"):
        for line in get(n, "/metrics", port=11437).text.splitlines():
            if line.startswith(("tailherd_inflight_requests{", "tailherd_queued_requests{")) and f'"{model}:latest"' in line and float(line.rsplit(" ", 1)[1]) > 0:
                return n
    return None


def moves_on(silence):
    """A request waits on one of two nodes whose engines hang; that node falls silent, the other's engine goes on.

    Returns (the node that fell silent, seconds from then to the whole answer).
    """
    for n in ("gpu", "nas"):
        unload(n)
        load(n, "shared")
    wait(20, "the laptop knows that both have it loaded", lambda: generate("laptop", "shared", n=1).status == 200)
    hung = {n: runners(n) for n in ("gpu", "nas")}
    for pids in hung.values():
        for p in pids:
            os.kill(p, signal.SIGSTOP)
    try:
        later = Later(lambda: generate("laptop", "shared", n=3))
        wait(5, "the request waits somewhere", waiting_at)
        where = waiting_at()
        time.sleep(0.5)
        other = {"gpu": "nas", "nas": "gpu"}[where]
        silence(where)
        began = time.monotonic()
        for p in hung[other]:
            os.kill(p, signal.SIGCONT)
        a = later.result(20)
        took = later.ended - began
        equal((a.status, a.by), (200, other), f"the request that waited on {where}: {a.text[:200]}")
        check(took < LIMIT, f"the request that waited on {where} was answered {took:.2f} s after it fell silent")
        return where, took
    finally:
        for pids in hung.values():
            for p in pids:
                try:
                    os.kill(p, signal.SIGCONT)
                except ProcessLookupError:
                    pass


def unharmed(silent):
    """Lists at once, and every other node's models served, while `silent` says nothing. Returns the figures."""
    other_model = {"gpu": ("second", "nas"), "nas": ("tiny", "gpu")}[silent]
    listed, served = [], []
    for _ in range(40):
        began = time.monotonic()
        names = models("laptop")
        listed.append(time.monotonic() - began)
        check("mine" in names and other_model[0] in names, f"{other_model[0]} is no longer listed")
    cli = []
    for _ in range(5):
        began = time.monotonic()
        equal(run_in("laptop", [os.environ["LAB_OLLAMA"], "list"], env={"HOME": "/tmp"}).returncode, 0, "ollama list")
        cli.append(time.monotonic() - began)
    generate("laptop", other_model[0])
    for _ in range(20):
        a = generate("laptop", other_model[0])
        equal((a.status, a.by), (200, other_model[1]), f"{other_model[0]} while {silent} is silent")
        served.append(a.total_s)
    check(max(listed) < 0.1, f"a list took {max(listed) * 1000:.0f} ms")
    check(statistics.median(cli) < 0.1, f"ollama list took {statistics.median(cli) * 1000:.0f} ms")
    check(max(served) < 1.0, f"{other_model[0]} on {other_model[1]} took {max(served):.2f} s")
    return f"lists ≤ {max(listed) * 1000:.0f} ms (CLI {statistics.median(cli) * 1000:.0f} ms), {other_model[0]} ≤ {max(served) * 1000:.0f} ms"
