#!/usr/bin/env python3
# ladder: a laptop with two tailnets, home and work, on its home LAN: at work nothing of home is used or told, tailscaled alive or not; back home without a restart
import time

from ladder import on_rung, packets, pid, pinned, reaches, status, uncount
from lab import case, check, ctl, equal, generate, wait


def profiles():
    """Ids of the logins tailscaled keeps, by the tailnet's coordinator."""
    rows = ctl("ts", "laptop", "switch", "--list").stdout.splitlines()[1:]
    return [r.split()[0] for r in rows]


def strangers(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        a = generate("laptop", "tiny", n=1, timeout=20)
        check(a.status in (404, 503), f"a node of home answered at work: {a.status} by {a.by}")
        time.sleep(0.5)


def body():
    pinned("laptop", "desk", "gpu")
    home = profiles()
    me = pid("laptop")
    began = time.monotonic()
    ctl("work", "laptop")
    wait(20, "the peers of home are gone", lambda: not [p for p in status("laptop")["peers"] if p["name"] in ("gpu", "desk") and p["path"]])
    gone = time.monotonic() - began
    time.sleep(3)
    uncount("laptop")
    strangers(5)
    ctl("kill", "tailscaled", "laptop")
    strangers(10)
    equal(packets("laptop", "ours"), 0, "packets of ours on the LAN while the laptop is at work")
    equal({p["name"] for p in status("laptop")["pins"]}, set(), "pins at work")
    ctl("start", "tailscaled", "laptop")
    began = time.monotonic()
    ctl("ts", "laptop", "switch", home[0])
    back = reaches("laptop", "tiny", 40, began, "tailnet")
    on_rung("laptop", "full", 30)
    pinned("laptop", "desk", "gpu")
    equal(pid("laptop"), me, "tailherd of the laptop")
    return f"home gone {gone:.1f} s after the switch to work, 0 packets of ours there; home again {back:.1f} s after the switch back"


case(body)
