#!/usr/bin/env python3
# both nodes' slots are busy and a request waits at one; the other becomes free: it moves there, runs once, is answered once
import os
import re
import signal
import time

from matrix.ask import runners
from lab import LAB_DIR, Http, Later, case, check, equal, generate, load, metric, numbers, unload, wait

BOTH = ("gpu", "nas")
PAUSE = 4.0


def asked(node):
    """Generations that the node's Ollama was asked for and is done with, by its own log."""
    with open(os.path.join(LAB_DIR, node, "ollama.log"), encoding="utf-8", errors="replace") as f:
        return len(re.findall(r'POST +"/api/generate"', f.read()))


def slow_down(node):
    """Teaches the mesh that answers take long there: its runner stands still in the middle of one."""
    h = Http("laptop")
    r = h.start("POST", "/api/generate", {"model": f"shared@{node}", "prompt": "x", "options": {"num_predict": 100}})
    numbers(r, stop_at=5)
    pids = runners(node)
    for p in pids:
        os.kill(p, signal.SIGSTOP)
    try:
        time.sleep(PAUSE)
    finally:
        for p in pids:
            os.kill(p, signal.SIGCONT)
    numbers(r)
    h.close()


def busy(node):
    """A stream that keeps the node's only slot."""
    h = Http("laptop")
    r = h.start("POST", "/api/generate", {"model": f"shared@{node}", "prompt": "x", "options": {"num_predict": 400000}})
    numbers(r, stop_at=5)
    return h, r


def waits():
    """The node in whose gate a request waits."""
    return next((n for n in BOTH if metric(n, "tailherd_queued_requests", model="shared:latest") > 0), None)


def body():
    for n in BOTH:
        unload(n)
        load(n, "shared")
    for _ in range(2):
        both = [Later(lambda n=n: slow_down(n)) for n in BOTH]
        for later in both:
            later.result()
    streams = {n: busy(n) for n in BOTH}
    before = {n: asked(n) for n in BOTH}
    moved, served = metric("laptop", "tailherd_moves_total"), {n: metric(n, "tailherd_served_total", outcome="done") for n in BOTH}
    later = Later(lambda: generate("laptop", "shared"))
    wait(5, "the request waits", waits)
    where = waits()
    other = {"gpu": "nas", "nas": "gpu"}[where]
    check(later.is_alive(), "the request did not wait: this case shows nothing")
    for s in reversed(streams[other]):
        s.close()
    began = time.monotonic()
    a = later.result(30)
    took = later.ended - began
    equal((a.status, a.by, a.json["response"]), (200, other, " 1 2 3"), f"the request that waited at {where}: {a.text[:200]}")
    check(took < 10, f"answered {took:.1f} s after {other} was free")
    equal(waits(), None, "what still waits somewhere")
    check(metric("laptop", "tailherd_moves_total", reason="withdrawn") > 0, "no move was counted")
    for s in reversed(streams[where]):
        s.close()
    wait(5, "both Ollamas are done", lambda: sum(asked(n) - before[n] for n in BOTH) >= 3)
    time.sleep(0.5)
    done = {n: metric(n, "tailherd_served_total", outcome="done") - served[n] for n in BOTH}
    equal(done, {other: 1, where: 0}, "answers to the end since then, by the sidecars")
    equal({n: asked(n) - before[n] for n in BOTH}, {other: 2, where: 1}, "generations the Ollamas were asked for, with the two streams")
    return f"waited at {where}, answered by {other} {took:.1f} s after that was free; one answer, {metric('laptop', 'tailherd_moves_total') - moved:.0f} move; run once by the sidecars' count and by the Ollamas' logs"


case(body)
