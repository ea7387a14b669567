#!/usr/bin/env python3
# ladder: everything away: `alone`, own models answer, others' refusals say why and since when; all back: `full` within 30 s, pins refreshed, nothing restarted, no peer twice
import time

from ladder import on_rung, path, pid, pin, pinned, reaches, status, when
from lab import case, check, ctl, equal, generate, wait

ME = ("laptop", "desk")


def body():
    for a, b in (ME, ME[::-1]):
        pinned(a, b)
    pids = {n: pid(n) for n in ME}
    began = time.monotonic()
    ctl("stop", "headscale", "coord")
    ctl("kill", "tailscaled", "laptop")
    ctl("kill", "tailscaled", "desk")
    ctl("lan", "cut", "laptop")
    alone = on_rung("laptop", "alone", 30, began)
    for _ in range(5):
        a = generate("laptop", "mine")
        equal((a.status, a.by), (200, "laptop"), f"its own model while alone: {a.text[:160]}")
    said = generate("laptop", "tiny", timeout=10)
    check(said.status in (404, 503), f"another's model while alone: {said.status} {said.text[:160]}")
    told = status("laptop")
    check(told["why"] and told["since"], f"status does not say why and since when: {told['why']!r} {told['since']!r}")
    check("gpu" in said.text, f"the refusal does not say whose model it is: {said.text[:300]}")
    check("tailscaled" in said.text and " for " in said.text, f"the refusal does not say why and since when: {said.text[:300]}")

    known = {n: when(pin(n, o)["verified"]) for n, o in (ME, ME[::-1])}
    began = time.monotonic()
    ctl("lan", "mend", "laptop")
    ctl("start", "headscale", "coord")
    for n in ME:
        ctl("start", "tailscaled", n)
    full = {n: on_rung(n, "full", 30, began) for n in ME}
    for n, o in (ME, ME[::-1]):
        wait(30, f"{n} refreshed its pin of {o}", lambda: when(pin(n, o)["verified"]) > known[n])
        wait(30, f"{n} reaches {o} over the tailnet", lambda: path(n, o) == "tailnet")
    refreshed = time.monotonic() - began
    for n in ME:
        equal(pid(n), pids[n], f"tailherd of {n}")
        rows = [p["name"] for p in status(n)["peers"]]
        equal(len(rows), len(set(rows)), f"peers of {n}: {rows}")
    reaches("laptop", "tiny", 30, began)
    return (f"alone after {alone:.1f} s, own model served; others: {said.status} {said.json['error']!r}; "
            f"full after {max(full.values()):.1f} s, pins refreshed after {refreshed:.1f} s")


case(body)
