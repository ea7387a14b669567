#!/usr/bin/env python3
# two nodes hold the same model, one has it in memory: requests go there, whichever of the two it is
import time

from lab import case, check, equal, generate, get, load, loaded, unload, wait

N = 12


def known(model):
    """Where the laptop believes that a model is in memory."""
    rows = [m for m in get("laptop", "/status", port=11437).json["models"] if m["name"].removesuffix(":latest") == model]
    return {o["peer"] for m in rows for o in m["offers"] if o["loaded"]}


def seconds():
    """What the laptop thinks that each node would take, and of what."""
    rows = get("laptop", "/explain?model=shared", port=11437).json["candidates"]
    return {row["node"]: {**{k: v for k, v in row["seconds"].items() if v}, **row["state"]} for row in rows}


def all_go_to(warm, cold):
    unload(cold)
    unload(warm)
    load(warm, "shared")
    heard = wait(10, f"the laptop knows that {warm} alone has it in memory", lambda: known("shared") == {warm})
    began = time.monotonic()
    for i in range(N):
        thought = seconds()
        a = generate("laptop", "shared")
        equal((a.status, a.by), (200, warm), f"request {i} while {warm} has it in memory; it was thought {thought}")
    took = (time.monotonic() - began) / N
    equal(loaded(cold) & {"shared"}, set(), f"in memory on {cold} afterwards")
    return heard, took


def body():
    out = []
    for warm, cold in (("gpu", "nas"), ("nas", "gpu")):
        heard, took = all_go_to(warm, cold)
        out.append(f"{N} of {N} to {warm}, {took * 1000:.0f} ms each, heard of after {heard:.1f} s")
    # both in memory again: it is the load that decides, not the node
    load("gpu", "shared")
    wait(10, "the laptop knows that both have it in memory", lambda: known("shared") == {"gpu", "nas"})
    check(generate("laptop", "shared").by in ("gpu", "nas"), "nobody answers")
    return "; ".join(out)


case(body)
