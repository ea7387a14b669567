#!/usr/bin/env python3
# ladder: policy closes desk > laptop, then desk comes over the LAN with its valid pin and silent pings: refused, `policy`, also after Headscale stops
import time

from ladder import LAN, LAN_PORT, Wire, peer, pinned, policy, reaches, status
from lab import ADDRESS, MESH, case, check, ctl, generate, sock, wait


def silent(node, on):
    """The node's tailscaled sleeps: no ping is answered, its sidecar cannot ask it and turns to the LAN."""
    ctl("freeze" if on else "thaw", "tailscaled", node)


def opens(node, other):
    """Whether a new connection over the tailnet is let through; those that are open stay so, as tailscaled does it."""
    s = sock(node)
    s.settimeout(1)
    try:
        s.connect((ADDRESS[other], MESH))
        return True
    except TimeoutError:
        return False
    finally:
        s.close()


def refused(seconds):
    """desk asks for what laptop has, again and again, and comes to its LAN port: it is told no, and why; nothing is answered."""
    wire, tried = Wire("router", "br0"), 0
    wait(30, "desk is told that policy forbids it", lambda: told("desk", "laptop"))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        a = generate("desk", "mine", n=1, timeout=20)
        check(a.status in (403, 404, 503), f"desk was answered: {a.status} by {a.by}")
        check(told("desk", "laptop"), f"desk's ways to laptop: {peer('desk', 'laptop')['paths']}")
        tried += 1
        time.sleep(0.25)
    came = sum(f.of == LAN["desk"] and f.to == LAN["laptop"] and f.dport == LAN_PORT for f in wire.stop())
    check(came > 0, "desk never came to the LAN port: this case shows nothing")
    return f"{tried} requests, 0 answered, {came} packets at the LAN port"


def told(node, other):
    """Whether `other` says to `node` on the LAN that policy keeps it out, and no way there lives."""
    ways = peer(node, other)["paths"]
    return any("policy" in p["why"] for p in ways if p["kind"] == "lan") and all(p["state"] == "down" for p in ways)


def body():
    pinned("laptop", "desk")
    pinned("desk", "laptop")
    silent("desk", True)
    control = reaches("desk", "mine", 20, kind="lan")
    silent("desk", False)
    wait(30, "desk is back on the tailnet", lambda: generate("desk", "mine", n=1).status == 200 and status("desk")["rung"] == "full")
    policy([{"src": ["100.64.0.1"], "dst": ["*"], "ip": ["*"]}, {"src": ["100.64.0.2"], "dst": ["100.64.0.3", "100.64.0.4", "100.64.0.5"], "ip": ["*"]},
            {"src": ["tag:ollama", "dev@", "100.64.0.5"], "dst": ["*"], "ip": ["*"]}])
    began = time.monotonic()
    wait(15, "the port is closed", lambda: not opens("desk", "laptop"))
    closed = time.monotonic() - began
    silent("desk", True)
    with_it = refused(8)
    ctl("stop", "headscale", "coord")
    without = refused(8)
    return f"open: over the LAN after {control:.1f} s; the port closed {closed:.1f} s after; pings silent: {with_it}; Headscale stopped: {without}"


case(body)
