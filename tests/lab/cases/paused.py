#!/usr/bin/env python3
# `tailherd pause`: the stream that runs goes on to its end, nothing new of others is taken, until `tailherd resume`
import os
import signal
import time

from matrix.ask import runners
from lab import Http, case, check, counted, ctl, equal, generate, get, load, metric, numbers, unload, wait

N = 300


def paused():
    unload("nas")
    load("gpu", "shared", "count")
    wait(20, "the laptop sends to gpu, which has it in memory", lambda: generate("laptop", "shared").by == "gpu")
    h = Http("laptop", timeout=120)
    r = h.start("POST", "/api/generate", {"model": "count", "prompt": "x", "options": {"num_predict": N}})
    equal(r.getheader("x-tailherd-served-by", "").split("/")[0], "gpu", "the stream is served by")
    got = numbers(r, stop_at=5)
    # The engine stands still, so that the stream is in its middle however fast the machine is.
    held = runners("gpu")
    for p in held:
        os.kill(p, signal.SIGSTOP)
    try:
        said = ctl("cli", "gpu", "pause").stdout.strip()
        check("1 request of theirs runs to its end" in said, f"pause says {said!r}")
        answers = [generate("laptop", "shared") for _ in range(5)]
        equal([(a.status, a.by) for a in answers], [(200, "nas")] * 5, "five new requests while gpu is paused")
        only = generate("laptop", "count")
        equal(only.status, 503, f"a model that gpu alone has: {only.text[:200]}")
        check(any(w in only.text for w in ("is paused", "for others now", "for nobody else now")), f"the refusal does not say why: {only.text[:300]}")
        equal(metric("gpu", "tailherd_inflight_requests"), 1, "requests that gpu's engine has")
        told = get("gpu", "/status", port=11437).json["sharing"]
        equal((told["accepting"], told["why"]), ("none", "paused"), "what it says of itself")
    finally:
        for p in held:
            os.kill(p, signal.SIGCONT)
    got += numbers(r)
    h.close()
    check(got == counted(N), f"the stream has {len(got)} numbers, not {N}")
    equal(generate("gpu", "count", n=1).status, 200, "its own programs")
    equal(generate("laptop", "shared").by, "nas", "who answers after the stream's end")
    ctl("cli", "gpu", "resume")
    began = time.monotonic()
    wait(10, "gpu is used again", lambda: generate("laptop", "count").status == 200)
    back = time.monotonic() - began
    return f"{said!r}: {N} numbers to the end; 6 of 6 elsewhere, 503 with a reason for what it alone has; used again {back:.1f} s after resume"


def body():
    try:
        return paused()
    finally:
        # A pause outlives its program.
        ctl("cli", "gpu", "resume", ok=False)


case(body)
