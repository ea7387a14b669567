#!/usr/bin/env python3
# ladder: tailnet dead on two nodes that both get new addresses at once: they find each other within 30 s; what they announce names nobody
import time

from ladder import Wire, pinned, reaches
from lab import ADDRESS, case, check, ctl

TELLING = ("laptop", "desk", "gpu", "lab.test", "mine", "second", "tailherd", *ADDRESS.values())


def body():
    pinned("laptop", "desk")
    pinned("desk", "laptop")
    for n in ("laptop", "desk"):
        ctl("kill", "tailscaled", n)
    reaches("laptop", "second", 10, kind="lan")
    reaches("desk", "mine", 10, kind="lan")
    wire = Wire("router", "br0")
    began = time.monotonic()
    ctl("lan", "move", "laptop", "98")
    ctl("lan", "move", "desk", "99")
    there = reaches("laptop", "second", 30, began, "lan")
    back = reaches("desk", "mine", 30, began, "lan")
    said = [f for f in wire.stop() if f.dport == 5353]
    check(said, "nothing was announced: they found each other by something else, and this case shows nothing")
    names = {word for f in said for word in TELLING if word.encode() in f.raw.lower()}
    check(not names - {"tailherd"}, f"an announcement says {names}")
    return f"laptop > desk after {there:.1f} s, desk > laptop after {back:.1f} s; {len(said)} mDNS packets, no name, model or tailnet address in them"


case(body)
