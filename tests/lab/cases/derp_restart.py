#!/usr/bin/env python3
# ladder: Headscale and its relay are gone, a node's tailscaled starts again, without a netmap and with a kept one: its peers within 25 s over the LAN
import time

from ladder import api, keep_netmaps, on_rung, packets, pinned, reaches, uncount
from lab import case, ctl, equal, wait


def restarted(state):
    """Coordinator and relay end, the laptop's tailscaled starts again. Seconds from its start until each was reached."""
    pinned("laptop", "desk", "gpu")
    pinned("desk", "laptop")
    uncount("laptop", "desk")
    ctl("stop", "headscale", "coord")
    ctl("stop", "tailscaled", "laptop")
    began = time.monotonic()
    ctl("start", "tailscaled", "laptop")
    wait(5, f"tailscaled says {state}", lambda: api("laptop", "status?peers=false")["BackendState"] == state)
    took = {"gpu": reaches("laptop", "tiny", 25, began, "lan"), "desk": reaches("laptop", "second", 25, began, "lan"),
            "from desk": reaches("desk", "mine", 25, began, "lan")}
    on_rung("laptop", "tailnet_lost", 25, began)
    equal({n: packets(n) for n in ("laptop", "desk")}, {"laptop": 0, "desk": 0}, "packets outside the tunnel")
    return f"{state}: " + ", ".join(f"{who} {s:.1f} s" for who, s in took.items())


def body():
    out = [restarted("NoState")]
    ctl("heal")
    keep_netmaps()
    out.append(restarted("Running"))
    return "; ".join(out)


case(body)
