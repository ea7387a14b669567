#!/usr/bin/env python3
# ladder: a node is logged out, its key not expired: `tailnet_lost`, logged_out, and 0 packets of ours on the LAN; with lan.whenLoggedOut its peers over the LAN
import time

from ladder import configured, on_rung, packets, pinned, reaches, status, uncount
from lab import case, check, ctl, equal, generate, wait


def body():
    pinned("laptop", "desk", "gpu")
    pinned("desk", "laptop")
    ctl("stop", "headscale", "coord")
    began = time.monotonic()
    ctl("forget_login", "laptop")
    lost = on_rung("laptop", "tailnet_lost", 20, began) if status("laptop")["rung"] != "alone" else time.monotonic() - began
    wait(10, f"why is logged_out, not {status('laptop')['why']}", lambda: status("laptop")["why"] == "logged_out")
    time.sleep(2)
    uncount("laptop")
    for _ in range(20):
        a = generate("laptop", "tiny", n=1, timeout=20)
        check(a.status in (404, 503), f"answered while logged out: {a.status} by {a.by}")
        time.sleep(0.5)
    equal(packets("laptop", "ours"), 0, "packets of ours while logged out")
    began = time.monotonic()
    configured("laptop", lan={"whenLoggedOut": True})
    own = time.monotonic() - began
    gpu, desk = reaches("laptop", "tiny", 30, began, "lan"), reaches("laptop", "second", 30, began, "lan")
    back = reaches("desk", "mine", 30, began, "lan")
    return f"logged_out after {lost:.1f} s, 0 packets in 10 s; with whenLoggedOut gpu after {gpu:.1f} s, desk {desk:.1f} s, from desk {back:.1f} s (start {own:.1f} s)"


case(body)
