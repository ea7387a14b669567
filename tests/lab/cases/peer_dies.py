#!/usr/bin/env python3
# a peer's tailherd is killed: before the first byte the request goes elsewhere, in mid-stream the reader is told, in its dialect
import json

import outage
from lab import Http, case, check, counted, ctl, equal, wait


def cut(path, body, item):
    """The lines of a stream whose server is killed after its first twenty items."""
    with Http("laptop") as h:
        r = h.start("POST", path, body)
        equal((r.status, r.getheader("x-tailherd-served-by", "").split("/")[0]), (200, "gpu"), path)
        lines = []
        for line in r:  # raises if the body does not end cleanly
            line = line.decode().strip()
            if line:
                lines.append(line)
            if len(lines) == 20:
                ctl("kill", "tailherd", "gpu")
    ctl("start", "tailherd", "gpu")
    wait(30, "gpu is back", lambda: Http("laptop").ask("POST", "/api/generate", {"model": "tiny", "prompt": "x", "stream": False}).status == 200)
    check(item(lines[-1]), f"{path}: the stream ends with {lines[-1][:200]}")
    return lines


def data(line):
    return json.loads(line.removeprefix("data: "))


def body():
    long = 40000
    got = cut("/api/generate", {"model": "count", "prompt": "x", "options": {"num_predict": long}}, lambda l: set(json.loads(l)) == {"error"})
    told = [int(w) for l in got[:-1] for w in json.loads(l)["response"].split()]
    equal(told, counted(len(told)), "the numbers before the cut")
    ask = {"model": "count", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": long}
    got = cut("/v1/chat/completions", ask, lambda l: data(l)["error"]["code"] == "upstream_lost")
    check("data: [DONE]" not in got, "[DONE] after an error")
    got = cut("/v1/messages", ask, lambda l: data(l)["type"] == "error" and data(l)["error"]["message"])
    equal(got[-2], "event: error", "the last event's name")
    got = cut("/v1/responses", {"model": "count", "input": "x", "stream": True, "max_output_tokens": long}, lambda l: data(l)["error"]["code"] == "upstream_lost")
    equal(got[-2], "event: error", "the last event's name")
    where, took = outage.moves_on(lambda node: ctl("kill", "tailherd", node))
    return f"four dialects told of the cut; killed while a request waited on {where}: answered elsewhere after {took:.2f} s"


case(body)
