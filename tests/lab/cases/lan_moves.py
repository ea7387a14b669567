#!/usr/bin/env python3
# ladder: LAN addresses of peers change while the coordinator and the asker's tailscaled are away: found again within 30 s
import time

from ladder import packets, pinned, reaches, uncount
from lab import case, ctl, equal


def moved(node, last, model):
    began = time.monotonic()
    ctl("lan", "move", node, last)
    return reaches("laptop", model, 30, began, "lan")


def body():
    pinned("laptop", "desk", "gpu")
    uncount("laptop")
    ctl("stop", "headscale", "coord")
    ctl("kill", "tailscaled", "laptop")
    for model in ("second", "tiny"):
        reaches("laptop", model, 10, kind="lan")
    desk, gpu = moved("desk", "99", "second"), moved("gpu", "98", "tiny")
    own = moved("laptop", "97", "tiny")
    equal(packets("laptop"), 0, "packets outside the tunnel")
    return f"desk, the same person's, found after {desk:.1f} s; gpu after {gpu:.1f} s; gpu reached {own:.1f} s after the laptop itself moved"


case(body)
