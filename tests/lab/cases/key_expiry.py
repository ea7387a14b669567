#!/usr/bin/env python3
# slow ladder: a node's key expires while the coordinator is away: `tailnet_lost`, logged_out, and its peers refuse it on the LAN although it would come (rule 16)
import time

from ladder import Wire, configured, knocks, pin, pinned, reaches, status, when
from lab import case, check, ctl, generate, wait

LEFT = 50


def body():
    configured("desk", lan={"whenLoggedOut": True})
    for n in ("laptop", "attic"):
        pinned(n, "desk")
    pinned("desk", "laptop")
    reaches("desk", "mine", 30)
    ends = time.monotonic() + LEFT
    ctl("expire", "desk", str(LEFT))
    wait(20, "laptop knows when desk's key ends", lambda: when(pin("laptop", "desk")["ends"]) < time.time() + LEFT)
    ctl("stop", "headscale", "coord")
    ctl("kill", "tailscaled", "attic")
    reaches("attic", "second", 10, kind="lan")  # until then the LAN is open to it
    check(time.monotonic() < ends, "the key ended too soon: this case shows nothing")
    time.sleep(max(0, ends - time.monotonic()))
    lost = wait(30, f"desk is logged out ({status('desk')['why']})", lambda: status("desk")["why"] == "logged_out")
    wire, tried, until = Wire("router", "br0"), 0, time.monotonic() + 15
    while time.monotonic() < until:
        for asker, model in (("desk", "mine"), ("desk", "third"), ("laptop", "second"), ("attic", "second")):
            a = generate(asker, model, n=1, timeout=20)
            check(a.status in (404, 503), f"{asker} was answered for {model}: {a.status} by {a.by}")
            tried += 1
        time.sleep(0.5)
    hits = knocks(wire.stop(), "desk", "laptop")
    check(hits > 0, "desk never came to laptop's LAN port: this case shows nothing")
    reaches("attic", "mine", 10, kind="lan")  # the others go on
    return f"logged_out {lost:.1f} s after its key ended; {tried} requests both ways, none answered, desk came {hits} times to laptop's LAN port"


case(body)
