#!/usr/bin/env python3
# `tailherd pause`: the stream that runs goes on to its end, nothing new of others is taken, until `tailherd resume`
import time

from lab import Http, Later, case, check, counted, ctl, equal, generate, get, load, metric, numbers, unload, wait

N = 4000


def paused():
    unload("nas")
    load("gpu", "shared", "count")
    wait(20, "the laptop sends to gpu, which has it in memory", lambda: generate("laptop", "shared").by == "gpu")
    with Http("laptop") as h:
        r = h.start("POST", "/api/generate", {"model": "count", "prompt": "x", "options": {"num_predict": N}})
        equal(r.getheader("x-tailherd-served-by", "").split("/")[0], "gpu", "the stream is served by")
        got = numbers(r, stop_at=20)
        reader = Later(lambda: numbers(r))
        said = ctl("cli", "gpu", "pause").stdout.strip()
        check(reader.is_alive(), "the stream had ended before: this case shows nothing")
        began = time.monotonic()
        served = metric("gpu", "tailherd_served_total")
        answers = [generate("laptop", "shared") for _ in range(5)]
        equal([(a.status, a.by) for a in answers], [(200, "nas")] * 5, "five new requests while gpu is paused")
        only = generate("laptop", "count")
        equal(only.status, 503, f"a model that gpu alone has: {only.text[:200]}")
        check("for others now" in only.text or "for nobody else now" in only.text, f"the refusal does not say why: {only.text[:300]}")
        equal(metric("gpu", "tailherd_served_total"), served, "requests of others that gpu served meanwhile")
        got += reader.result(120)
        ended = time.monotonic() - began
    check(got == counted(N), f"the stream has {len(got)} numbers, not {N}")
    equal(generate("gpu", "count", n=1).status, 200, "its own programs")
    told = get("gpu", "/status", port=11437).json["sharing"]
    equal((told["accepting"], told["why"]), ("none", "paused"), "what it says of itself")
    equal(generate("laptop", "shared").by, "nas", "who answers after the stream's end")
    ctl("cli", "gpu", "resume")
    back = wait(10, "gpu is used again", lambda: generate("laptop", "count").status == 200)
    return f"{said!r}: {N} numbers to the end, {ended:.1f} s after it; 6 of 6 elsewhere, 503 with a reason for what it alone has; used again {back:.1f} s after resume"


def body():
    try:
        return paused()
    finally:
        # A pause outlives its program.
        ctl("cli", "gpu", "resume", ok=False)


case(body)
