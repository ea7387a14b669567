#!/usr/bin/env python3
# tailscaled killed under 50 connects a second: 0 packets to 100.64/10 leave outside the tunnel; an unbound connect does leak
import threading
import time

from lab import check, case, ctl, equal, generate, plain_connect, wait

RULE = 'oifname "eth0" ip daddr 100.64.0.0/10'


def leaked():
    return int(ctl("counted", "laptop", "leak").stdout.split()[0])


def load(seconds, tally):
    """50 new requests a second for models of both boxes, nobody waiting for anybody."""
    threads, until, i = [], time.monotonic() + seconds, 0
    while time.monotonic() < until:
        i += 1

        def one(model=("tiny", "second")[i % 2]):
            try:
                tally.append(generate("laptop", model, n=1, timeout=10, headers={"Connection": "close"}).status)
            except OSError:
                tally.append(0)

        t = threading.Thread(target=one, daemon=True)
        t.start()
        threads.append(t)
        time.sleep(0.02)
    return threads


def body():
    ctl("count", "laptop", "leak", RULE)
    before, after = [], []
    threads = load(2, before)
    for t in threads:
        t.join(10)
    check(before.count(200) > 50, f"with the tailnet up only {before.count(200)} of {len(before)} requests were answered")
    killer = threading.Timer(1.0, lambda: ctl("kill", "tailscaled", "laptop"))
    killer.start()
    threads = load(8, after)
    n = leaked()
    check(n == 0, f"{n} packets left outside the tunnel")
    for t in threads:
        t.join(15)
    equal(leaked(), 0, "packets outside the tunnel")
    # The control: the same address, by a plain connect.
    plain_connect("laptop", "gpu")
    control = leaked()
    check(control > 0, "a plain connect was not counted: this case shows nothing")
    ctl("start", "tailscaled", "laptop")
    back = wait(60, "requests answered again", lambda: generate("laptop", "tiny", n=1, timeout=5).status == 200, every=0.2)
    equal(leaked(), control, "packets outside the tunnel while tailscaled came back")
    return f"{len(before) + len(after)} requests, 0 packets leaked; a plain connect leaked {control}; answered again {back:.1f} s after tailscaled was back"


case(body)
