#!/usr/bin/env python3
# `count` over one and two hops, into and out of the userspace node: no number lost, doubled or reordered, none held back
import json

from lab import Http, case, check, counted, equal, numbers

WAYS = [("gpu", "count", "gpu"), ("laptop", "count", "gpu"), ("laptop", "third", "nas"), ("nas", "count", "gpu"), ("gpu", "third", "nas"), ("colleague", "count", "gpu")]
N = 3000


def native(node, model, by):
    with Http(node) as h:
        r = h.start("POST", "/api/generate", {"model": model, "prompt": "x", "options": {"num_predict": N}})
        equal(r.status, 200, f"{node} asks {model}")
        equal(r.getheader("x-tailherd-served-by", "").split("/")[0], by, f"{node} asks {model}: served by")
        got = numbers(r)
    check(got == counted(N), f"{node} > {by}: {len(got)} numbers, first wrong at {first_wrong(got)}")
    return h.head_s


def openai(node, model):
    with Http(node) as h:
        r = h.start("POST", "/v1/chat/completions", {"model": model, "stream": True, "max_tokens": N, "messages": [{"role": "user", "content": "x"}]})
        text, last = "", None
        for line in r:
            line = line.decode().strip()
            if line.startswith("data: "):
                last = line[6:]
                if last != "[DONE]":
                    for c in json.loads(last)["choices"]:
                        text += c["delta"].get("content", "")
    equal(last, "[DONE]", "the last event")
    got = [int(w) for w in text.split()]
    check(got == counted(N), f"/v1 {node}: {len(got)} numbers, first wrong at {first_wrong(got)}")


def first_wrong(got):
    return next((i for i, (a, b) in enumerate(zip(got, counted(N))) if a != b), min(len(got), N))


def held_back(node, model):
    """Seconds between the first and the last number of a stream: a buffered one would come at once."""
    import time

    with Http(node) as h:
        r = h.start("POST", "/api/generate", {"model": model, "prompt": "x", "options": {"num_predict": N}})
        first = None
        for line in r:
            first = first or time.monotonic()
            if json.loads(line).get("done"):
                item = json.loads(line)
                return (time.monotonic() - first) / (item["eval_duration"] / 1e9)


def body():
    heads = [f"{a}>{by} {native(a, m, by) * 1000:.0f} ms" for a, m, by in WAYS]
    openai("laptop", "count")
    share = held_back("laptop", "count")
    check(share > 0.8, f"the stream arrived in {share:.0%} of the time it took to write")
    return f"{len(WAYS) + 2} streams of {N} numbers whole; first byte: {', '.join(heads)}"


case(body)
