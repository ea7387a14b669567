#!/usr/bin/env python3
# slow: a cold load of 150 s survives, while lists and other models go on as if nothing were
import os
import time

from lab import LAB_DIR, Later, case, check, equal, generate, models, unload

DELAY = 150


def body():
    with open(os.path.join(LAB_DIR, "gpu", "load-delay"), "w", encoding="utf-8") as f:
        f.write(str(DELAY))
    unload("gpu")
    later = Later(lambda: generate("laptop", "slow", timeout=DELAY + 120))
    began = time.monotonic()
    listed, served = 0.0, 0.0
    while later.is_alive() and time.monotonic() - began < DELAY - 5:
        t = time.monotonic()
        check("slow" in models("laptop"), "slow is no longer listed while it loads")
        listed = max(listed, time.monotonic() - t)
        a = generate("laptop", "second")
        equal(a.status, 200, "a model of another node during the load")
        served = max(served, a.total_s)
        time.sleep(1)
    a = later.result(DELAY + 120)
    equal((a.status, a.by), (200, "gpu"), f"the request that waited for the load: {a.text[:200]}")
    equal(a.json["response"], " 1 2 3", "its answer")
    equal(a.headers.get("x-tailherd-attempts"), "1", "attempts")
    check(a.total_s >= DELAY, f"answered after {a.total_s:.0f} s: this case shows nothing")
    check(listed < 0.1, f"a list took {listed * 1000:.0f} ms")
    return f"answered after {a.total_s:.1f} s in one attempt; meanwhile lists ≤ {listed * 1000:.0f} ms, others' models ≤ {served * 1000:.0f} ms"


case(body)
