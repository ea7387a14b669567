#!/usr/bin/env python3
# the client leaves at number 20: the engine stops, and the next request starts at once
import time

from lab import Http, Later, case, check, counted, equal, generate, load, numbers

LONG = {"num_predict": 40000}


def leaves(node, model):
    """Seconds from leaving at 20 to the whole answer of the next request."""
    h = Http(node)
    r = h.start("POST", "/api/generate", {"model": model, "prompt": "x", "options": LONG})
    equal(numbers(r, stop_at=20)[:20], counted(20), "the first numbers")
    left = time.monotonic()
    r.close()
    h.close()
    equal(generate(node, model).status, 200, "the next request")
    return time.monotonic() - left


def stays(node, model):
    """Does the next request wait while nobody left? (the control: without it, an idle second slot would look the same)"""
    with Http(node) as h:
        r = h.start("POST", "/api/generate", {"model": model, "prompt": "x", "options": LONG})
        reader = Later(lambda: numbers(r, stop_at=8000))
        other = Later(lambda: generate(node, model))
        time.sleep(1.5)
        waited = other.is_alive()
        reader.result(180)
        r.close()
    other.result(180)
    return waited


def body():
    load("gpu", "count")
    load("nas", "third")
    check(stays("laptop", "count"), "the next request did not wait for the running one: this case shows nothing")
    took = {f"{a}>{by}": leaves(a, m) for a, m, by in (("gpu", "count", "here"), ("laptop", "count", "gpu"), ("laptop", "third", "nas"), ("nas", "count", "gpu"))}
    for way, s in took.items():
        check(s < 1.0, f"{way}: the next request took {s:.2f} s")
    return ", ".join(f"{w} {s * 1000:.0f} ms" for w, s in took.items()) + " from leaving to the next whole answer"


case(body)
