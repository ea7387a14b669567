#!/usr/bin/env python3
# slow ladder: the LAN between two nodes whose tunnel is relayed is cut and comes back, with the relay and without: the right path each time, other streams untouched
import time

from ladder import Steady, Streams, api, path, pinned, reaches, ways
from lab import ADDRESS, case, check, ctl, generate, wait


def current(node, other):
    """The direct address of a tunnel, "" while it is relayed."""
    return next(p.get("CurAddr", "") for p in api(node, "status")["Peer"].values() if p["TailscaleIPs"][0] == ADDRESS[other])


def between(verb):
    for n in ("laptop", "gpu"):
        ctl("lan", verb, n)


def body():
    pinned("laptop", "gpu")
    ctl("relayed", "on", "laptop", "gpu")
    ctl("relayed", "on", "gpu", "laptop")
    # tailscaled takes a while to see it; until then the LAN serves.
    wait(60, "the tunnel laptop-gpu is relayed", lambda: generate("laptop", "tiny", n=1).status == 200 and current("laptop", "gpu") == ""
         and ways("laptop", "gpu") == {"tailnet": "up", "lan": "standby"})
    # (`shared` is served by an engine process of its own: nothing of it waits behind `tiny`.)
    streams = [Streams("desk", "shared@gpu", "gpu"), Streams("laptop", "shared@desk", "desk")]
    steady = Steady("laptop", "tiny")
    out = []

    began = time.monotonic()
    between("apart")
    wait(30, "the LAN path is down", lambda: ways("laptop", "gpu").get("lan") == "down")
    check(path("laptop", "gpu") == "tailnet", f"cut: the path is {path('laptop', 'gpu')}")
    out.append(f"cut: seen {time.monotonic() - began:.1f} s, relayed tailnet")

    began = time.monotonic()
    between("together")
    wait(30, "the LAN path is back", lambda: ways("laptop", "gpu").get("lan") in ("up", "standby"))
    check(path("laptop", "gpu") == "tailnet", f"back: the path is {path('laptop', 'gpu')}")
    out.append(f"back: seen {time.monotonic() - began:.1f} s, relayed tailnet; {steady.stop().none_failed()}")

    began = time.monotonic()
    ctl("stop", "headscale", "coord")
    out.append(f"relay gone: LAN after {reaches('laptop', 'tiny', 15, began, 'lan'):.1f} s")
    began = time.monotonic()
    between("apart")
    wait(15, "no path is left", lambda: path("laptop", "gpu") is None)
    out.append(f"cut again: none after {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    between("together")
    out.append(f"back again: LAN after {reaches('laptop', 'tiny', 30, began, 'lan'):.1f} s")
    return "; ".join(out + [s.stop() for s in streams])


case(body)
