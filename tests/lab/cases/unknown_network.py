#!/usr/bin/env python3
# slow ladder: a laptop is taken from its home LAN to another one of the same addresses, first idle, then with the tailnet dead and the LAN busy: 60 s each, 0 packets of ours there (but for one IGMP leave of the kernel, which is told)
import os
import threading
import time

from ladder import LAN, LAN_PORT, Wire, mac, on_rung, pinned, reaches, status, ways
from lab import ADDRESS, Http, case, check, ctl, equal, generate, numbers, wait

# Seconds without any network in between, as with a cable or a Wi-Fi, where it is rather more. The node's address and its
# routes stay all the while, as they do before a new lease.
GAP = {"LAB_GAP": os.environ.get("LAB_GAP", "2.5")}
HOLD = float(os.environ.get("LAB_HOLD", "60"))


def of_ours(f, alone):
    """What a packet of the laptop has to do with us, "" if nothing. tailscaled speaks UDP to everybody, and TCP to its
    coordinator; while it lives, who is asked for (ARP) is asked for by it: only `alone` such a question counts."""
    peers = [LAN[n] for n in LAN if n != "laptop"]
    if alone and f.asks in peers:
        return "ARP"
    if f.proto == 2:
        return "IGMP"
    if f.proto == 17 and 5353 in (f.sport, f.dport):
        return "mDNS"
    if f.proto == 6 and (LAN_PORT in (f.sport, f.dport) or f.to in peers):
        return "TCP"
    return "tailnet" if f.to in ADDRESS.values() else ""


def away(what, alone):
    """Takes it there, and looks for a minute. Returns when it was back."""
    me = mac("laptop")
    wire = Wire("cafe", "br0")
    began = time.monotonic()
    ctl("lan", "cafe", "laptop", env={**os.environ, **GAP})
    there = time.monotonic() - began
    wait(20, "the network is told to be an unknown one", lambda: status("laptop")["lan"]["unknown"])
    time.sleep(max(0.0, HOLD + there - (time.monotonic() - began)))
    told = status("laptop")["lan"]
    frames = [f for f in wire.stop() if f.src == me]
    check(told["unknown"] and not told["links"], f"{what}: the unknown network is used: {told}")
    check(frames, f"{what}: nothing of the laptop was seen there, so this shows nothing")
    ours = [(kind, f) for f in frames if (kind := of_ours(f, alone))]
    kinds = ", ".join(f"{sum(k == kind for k, _ in ours)} {kind}" for kind in sorted({k for k, _ in ours}))
    # The kernel says twice that it leaves the mDNS group, the second time up to two seconds later. That it does not ask us is
    # no reason not to count it.
    leaves = sum(kind == "IGMP" for kind, _ in ours)
    strict = [f for kind, f in ours if kind != "IGMP"]
    equal(len(strict), 0, f"{what}: packets of ours there: {kinds}, first {strict[0] if strict else None}")
    check(leaves <= 1, f"{what}: {leaves} IGMP packets there")
    began = time.monotonic()
    ctl("lan", "home", "laptop", env={**os.environ, **GAP})
    return f"{what}: 0 of {len(frames)} packets of the laptop were ours ({leaves} IGMP of its kernel, leaving the mDNS group)", began


class Busy:
    """Long answers of `count` and short ones of `second`, without a pause, until `stop`."""

    def __init__(self):
        self.over, self.broken, self.whole = threading.Event(), [], 0
        for work in (self._long, self._long, self._short, self._short):
            threading.Thread(target=work, daemon=True).start()

    def _long(self):
        try:
            with Http("laptop", timeout=90) as h:
                numbers(h.start("POST", "/api/generate", {"model": "count", "prompt": "x", "options": {"num_predict": 1000000}}))
        except Exception as e:  # the network is taken away: it has to break
            self.broken.append(e)

    def _short(self):
        while not self.over.is_set():
            try:
                self.whole += generate("laptop", "second", n=1, timeout=20).status == 200
            except OSError:
                pass


def body():
    ctl("lan", "cafe", "attic")  # so that the other network exists; nobody else may be there, or it would become a known one
    ctl("lan", "home", "attic")
    pinned("laptop", "desk", "gpu")
    on_rung("laptop", "full", 30)
    for peer in ("desk", "gpu"):
        wait(40, f"a meet with {peer} on the LAN", lambda: ways("laptop", peer) == {"tailnet": "up", "lan": "standby"})
    idle, _ = away("idle", False)
    on_rung("laptop", "full", 60)
    for peer in ("desk", "gpu"):
        wait(40, f"a meet with {peer} again", lambda: ways("laptop", peer).get("lan") in ("up", "standby"))

    ctl("kill", "tailscaled", "laptop")
    for model in ("second", "tiny"):
        reaches("laptop", model, 10, kind="lan")
    busy = Busy()
    wait(20, "requests over the LAN", lambda: busy.whole > 5)
    check(not busy.broken, f"a long answer ended by itself: {busy.broken}")
    there, began = away("tailnet dead, LAN busy", True)
    busy.over.set()
    equal(len(busy.broken), 2, "long answers that broke when the network was lost")
    back = reaches("laptop", "second", 40, began, "lan")
    return f"{idle}; {there}; {GAP['LAB_GAP']} s without a network in between; home again it reached its peers over the LAN {back:.1f} s after it left"


case(body)
