#!/usr/bin/env python3
# slow ladder: a node is removed in Headscale: its pin suspended within 65 s and the LAN refused both ways, also by a node that hears of it only over the LAN
import time

from ladder import Wire, knocks, pin, pinned, reaches
from lab import case, check, ctl, equal, generate, wait


def state(node, name):
    return (pin(node, name) or {}).get("state")


def body():
    pinned("laptop", "desk", "attic")
    pinned("attic", "desk", "laptop")
    pinned("desk", "laptop", "attic")
    # attic lives on the LAN alone from now on; it could go on with desk there, as the tailnet allowed it.
    ctl("kill", "tailscaled", "attic")
    reaches("attic", "second", 10, kind="lan")
    reaches("attic", "mine", 10, kind="lan")
    began = time.monotonic()
    ctl("remove", "desk")
    wait(65, "laptop suspended its pin of desk", lambda: state("laptop", "desk") == "suspended", every=0.5)
    first = time.monotonic() - began
    wait(40, "attic suspended its pin of desk", lambda: state("attic", "desk") == "suspended", every=0.5)
    second = time.monotonic() - began
    wire = Wire("router", "br0")
    until = time.monotonic() + 15
    tried = 0
    while time.monotonic() < until:
        for asker, model in (("desk", "mine"), ("desk", "third"), ("laptop", "second"), ("attic", "second")):
            a = generate(asker, model, n=1, timeout=20)
            check(a.status in (404, 503), f"{asker} was answered for {model}: {a.status} by {a.by}")
            tried += 1
        time.sleep(0.5)
    frames = wire.stop()
    came = {n: knocks(frames, "desk", n) for n in ("laptop", "attic")}
    check(all(came.values()), f"desk did not come to both LAN ports, so this case shows nothing: {came}")
    equal([knocks(frames, n, "desk") for n in ("laptop", "attic")], [0, 0], "connections asked of desk by laptop and attic")
    reaches("attic", "mine", 10, kind="lan")  # the others go on
    return f"suspended on laptop after {first:.0f} s, on attic, told over the LAN, after {second:.0f} s; {tried} requests both ways, none answered; desk came {came} times"


case(body)
