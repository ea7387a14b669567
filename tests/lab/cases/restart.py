#!/usr/bin/env python3
# tailherd ended or killed and started again: the mesh's models are listed within 2 s
import time

from lab import case, check, ctl, models, wait


def body():
    before = models("laptop")
    check({"tiny", "second"} <= before, f"before the restart only {before} are listed")
    time.sleep(6)  # the state is written every few seconds; a kill may cost what came since
    out = []
    for how in ("stop", "kill"):
        ctl(how, "tailherd", "laptop")
        began = time.monotonic()
        ctl("start", "tailherd", "laptop")
        wait(5, f"all models listed after {how}", lambda: models("laptop") == before)
        took = time.monotonic() - began
        check(took < 2, f"after {how}: listed again after {took:.2f} s")
        out.append(f"{how} {took:.2f} s")
    return f"{len(before)} models listed again after " + ", ".join(out)


case(body)
