#!/usr/bin/env python3
# slow ladder: Headscale is cut off silently, relay and all: `coordinator_lost` within 170 s, 0 of a steady 5/s fail; `full` again after
import time

from ladder import Steady, on_rung
from lab import case, ctl


def body():
    on_rung("laptop", "full", 10)
    asker = Steady("laptop", "tiny", "second")
    time.sleep(1)
    began = time.monotonic()
    ctl("blackhole", "on", "coord")
    lost = on_rung("laptop", "coordinator_lost", 170, began)
    time.sleep(10)
    began = time.monotonic()
    ctl("blackhole", "off", "coord")
    back = on_rung("laptop", "full", 150, began)
    return f"coordinator_lost after {lost:.0f} s, full {back:.0f} s after the cut was mended; {asker.stop().none_failed()}"


case(body)
