#!/usr/bin/env python3
# `ollama list` on the laptop shows models it never had, and answers in under 100 ms
import statistics
import time

from lab import ENGINE, case, check, ctl, equal, get, models, run_in
import os


def body():
    equal(models("laptop", ENGINE), {"mine"}, "what the laptop itself has")
    listed = {l.split()[0].removesuffix(":latest") for l in ctl("ollama", "laptop", "list").stdout.splitlines()[1:]}
    equal(listed, {"mine", "tiny", "count", "tools", "think", "embed", "shared", "slow", "second", "third"}, "ollama list")
    equal({m["id"].removesuffix(":latest") for m in get("laptop", "/v1/models").json["data"]}, listed, "/v1/models")
    took = []
    for _ in range(10):
        began = time.monotonic()
        equal(run_in("laptop", [os.environ["LAB_OLLAMA"], "list"], env={"HOME": "/tmp"}).returncode, 0, "ollama list")
        took.append(time.monotonic() - began)
    check(statistics.median(took) < 0.1, f"ollama list took {statistics.median(took) * 1000:.0f} ms")
    first = [m["name"] for m in get("laptop", "/api/tags").json["models"] if "mesh" not in m]
    equal(first, [], "rows without the mesh field")
    return f"{len(listed)} models listed, 1 of them its own, {statistics.median(took) * 1000:.0f} ms with the CLI's own start"


case(body)
