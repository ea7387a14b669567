#!/usr/bin/env python3
# a tailnet grant opens `observe` to the colleague, and its removal closes it on a living connection within 15 s (rule 8)
import json
import os
import time

from lab import ADDRESS, LAB_DIR, MESH, Http, case, check, ctl, equal, wait


def body():
    with open(os.path.join(LAB_DIR, "coord", "policy.json"), encoding="utf-8") as f:
        policy = json.load(f)
    policy["grants"].append({"src": ["dev@"], "dst": ["tag:ollama"], "app": {"tailherd.dev/cap/use": [{"verbs": ["observe"]}]}})
    granted = os.path.join(LAB_DIR, "granted.json")
    with open(granted, "w", encoding="utf-8") as f:
        json.dump(policy, f)
    out = []
    for node in ("gpu", "nas"):
        with Http("colleague", to=ADDRESS[node], port=MESH) as h:
            look = lambda: h.ask("GET", "/metrics").status
            equal(look(), 403, f"/metrics of {node} before the grant")
            ctl("policy", granted)
            came = wait(20, "the grant counts", lambda: look() == 200, every=0.25)
            began = time.monotonic()
            ctl("policy", "default")
            wait(20, "the grant's removal counts", lambda: look() == 403, every=0.25)
            went = time.monotonic() - began
            check(went < 15, f"still served {went:.1f} s after the grant was removed")
            out.append(f"{node}: counted after {came:.1f} s, gone {went:.1f} s after its removal")
    return "; ".join(out)


case(body)
