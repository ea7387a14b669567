#!/usr/bin/env python3
# ladder: Headscale is stopped and with it its relay: `coordinator_lost` within 5 s, 0 of a steady 5/s fail; `full` again when it is back
import time

from ladder import BY, Steady, on_rung, status, ways
from lab import case, check, ctl, wait


def body():
    on_rung("laptop", "full", 30)
    for model in ("tiny", "second"):
        wait(30, f"the tailnet's way to {BY[model]}", lambda: ways("laptop", BY[model]).get("tailnet") == "up")
    asker = Steady("laptop", "tiny", "second")
    time.sleep(2)
    began = time.monotonic()
    ctl("stop", "headscale", "coord")
    stopped = time.monotonic() - began
    lost = on_rung("laptop", "coordinator_lost", 5 + stopped, began)
    told = status("laptop")
    check(not told["coordinator"]["up"] and told["coordinator"]["since"], f"status: {told['coordinator']}")
    time.sleep(10)
    began = time.monotonic()
    ctl("start", "headscale", "coord")
    back = on_rung("laptop", "full", 45, began)
    return f"coordinator_lost after {lost:.1f} s (Headscale took {stopped:.1f} s to end), full {back:.1f} s after its start; {asker.stop().none_failed()}"


case(body)
