#!/usr/bin/env python3
# ladder: an exit node without access to the LAN: 0 packets of ours there, tailscaled alive or killed, models over the tailnet; with access, the LAN again
import json
import time

from ladder import api, packets, path, pinned, reaches, status, uncount
from lab import case, check, ctl, equal, generate, wait


def advertise():
    ctl("changed")
    ctl("ts", "gpu", "set", "--advertise-exit-node")
    nodes = json.loads(ctl("hs", "nodes", "list", "-o", "json").stdout)
    node = next(str(n["id"]) for n in nodes if n["given_name"] == "gpu")
    ctl("hs", "nodes", "approve-routes", "-i", node, "-r", "0.0.0.0/0,::/0")
    offered = lambda: any(p.get("ExitNodeOption") for p in (api("laptop", "status").get("Peer") or {}).values())
    wait(20, "the laptop is offered an exit node", offered)


def lan():
    return status("laptop")["lan"]


def body():
    pinned("laptop", "desk", "gpu")
    wait(30, "the laptop uses its LAN", lambda: lan()["links"])
    advertise()
    ctl("ts", "laptop", "set", f"--exit-node={ctl('ip', 'gpu').stdout.strip()}", "--exit-node-allow-lan-access=false")
    began = time.monotonic()
    wait(10, "the LAN is off", lambda: "exit node" in (lan()["off"] or "") and not lan()["links"])
    off = time.monotonic() - began
    time.sleep(1)
    uncount("laptop")
    for _ in range(10):
        a = generate("laptop", "second", n=1, timeout=20)
        check((a.status, a.by, path("laptop", "desk")) == (200, "desk", "tailnet"), f"over the tailnet: {a.status} by {a.by}: {a.text[:160]}")
        time.sleep(0.2)
    ctl("kill", "tailscaled", "laptop")
    for _ in range(10):
        a = generate("laptop", "second", n=1, timeout=20)
        check(a.status in (404, 503), f"without tailscaled: {a.status} by {a.by}")
        time.sleep(0.5)
    equal(packets("laptop", "ours"), 0, "packets of ours on the LAN with an exit node that forbids it")
    check("exit node" in (lan()["off"] or ""), f"the LAN is {lan()}")
    ctl("start", "tailscaled", "laptop")
    wait(30, "the tailnet again", lambda: generate("laptop", "second", n=1).by == "desk")
    began = time.monotonic()
    ctl("ts", "laptop", "set", "--exit-node-allow-lan-access=true")
    wait(10, "the LAN is on again", lambda: lan()["links"])
    on = time.monotonic() - began
    ctl("kill", "tailscaled", "laptop")
    over = reaches("laptop", "second", 15, None, "lan")
    return f"LAN off {off:.1f} s after the exit node was set, 0 packets of ours, tailscaled alive or killed; on {on:.1f} s after access was allowed, then desk over it {over:.1f} s after tailscaled's end"


case(body)
