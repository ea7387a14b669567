#!/usr/bin/env python3
# ladder: tailscaled killed on the asking node, then on a serving one: LAN within 5 s, 0 packets outside the tunnel, 0 of a steady 5/s fail; back after
import time

from ladder import BY, Steady, Wire, on_rung, outside, packets, path, pinned, reaches, uncount, ways
from lab import Later, case, ctl, equal, wait


def killed(node, others):
    """`node` loses tailscaled. Seconds until each (asker, model) is answered over the LAN, and until all are back on the tailnet."""
    on_rung("laptop", "full", 30)
    for a, model in others:
        wait(30, f"{a} knows {BY[model]}'s ways", lambda: ways(a, BY[model]) == {"tailnet": "up", "lan": "standby"})
    asker = Steady("laptop", "tiny", "second")
    time.sleep(2)
    began = time.monotonic()
    ctl("kill", "tailscaled", node)
    asked = [Later(lambda a=a, model=model: reaches(a, model, 5, began, "lan")) for a, model in others]
    lan = max(one.result(20) for one in asked)
    time.sleep(3)
    middle = time.monotonic()
    ctl("start", "tailscaled", node)
    for a, model in others:
        wait(45, f"{a} reaches {BY[model]} over the tailnet again", lambda: path(a, BY[model]) == "tailnet")
    back = time.monotonic() - middle
    time.sleep(1)
    told = asker.stop().none_failed()
    return f"{node}: LAN after {lan:.1f} s, tailnet {back:.1f} s after its start, {told}"


def body():
    pinned("laptop", "desk", "gpu")
    pinned("gpu", "laptop", "colleague")
    uncount()
    wires = {n: Wire(n) for n in ("laptop", "desk", "gpu", "colleague")}
    out = [killed("laptop", [("laptop", "tiny"), ("laptop", "second")])]
    out.append(killed("gpu", [("laptop", "tiny"), ("colleague", "tiny")]))
    seen = {n: outside(wire.stop()) for n, wire in wires.items()}
    equal({n: packets(n) for n in wires}, dict.fromkeys(wires, 0), f"packets outside the tunnel (on the wire: {seen})")
    return "; ".join(out) + "; 0 packets outside the tunnel"


case(body)
