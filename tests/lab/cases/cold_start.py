#!/usr/bin/env python3
# ladder: tailherd starts while coordinator and tailscaled are away: own models at once, its peers' models listed, and served over the LAN
import time

from ladder import on_rung, pinned, reaches, ways
from lab import case, ctl, generate, models, wait


def body():
    pinned("laptop", "desk", "gpu")
    # in a mesh that is only just up nobody has met anybody on the LAN
    for name in ("gpu", "desk", "attic"):
        wait(60, f"the laptop has met {name} on the LAN", lambda: ways("laptop", name).get("lan") in ("up", "standby"))
    before = models("laptop")
    time.sleep(6)  # what is saved is written every few seconds
    ctl("stop", "headscale", "coord")
    ctl("kill", "tailscaled", "laptop")
    ctl("kill", "tailherd", "laptop")
    began = time.monotonic()
    ctl("start", "tailherd", "laptop")
    own = wait(3, "its own model answers", lambda: generate("laptop", "mine", n=1).status == 200)
    wait(3, "the others' models are listed", lambda: models("laptop") == before)
    listed = time.monotonic() - began
    took = {m: reaches("laptop", m, 20, began, "lan") for m in ("tiny", "second", "third")}
    on_rung("laptop", "tailnet_lost", 30, began)
    return f"own model {own:.1f} s, {len(before)} models listed {listed:.1f} s, LAN " + ", ".join(f"{m} {s:.1f} s" for m, s in took.items())


case(body)
