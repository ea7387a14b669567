#!/usr/bin/env python3
# no configuration: laptop and colleague each use both tagged boxes, neither uses or sends to the other (0 packets)
from lab import ADDRESS, MESH, case, check, ctl, equal, generate, get, models, post
import json

OURS = {"Content-Type": "application/vnd.tailherd+json"}
GPU = {"tiny", "count", "tools", "think", "embed", "shared", "slow"}
NAS = {"second", "third", "shared"}
LISTS = {"laptop": GPU | NAS | {"mine"}, "colleague": GPU | NAS | {"theirs"}, "gpu": GPU | NAS, "nas": GPU | NAS}
# who asks, for what, who answers (None: nobody has it)
USES = [("laptop", "tiny", "gpu"), ("laptop", "second", "nas"), ("laptop", "mine", "laptop"), ("laptop", "theirs", None),
        ("colleague", "tiny", "gpu"), ("colleague", "second", "nas"), ("colleague", "theirs", "colleague"), ("colleague", "mine", None),
        ("gpu", "second", "nas"), ("gpu", "mine", None), ("gpu", "theirs", None),
        ("nas", "tiny", "gpu"), ("nas", "mine", None), ("nas", "theirs", None)]


def body():
    for node, want in LISTS.items():
        equal(models(node), want, f"{node} lists")
    for node, model, by in USES:
        a = generate(node, model)
        if by is None:
            equal(a.status, 404, f"{node} asks for {model}")
            check(f"model '{model}' not found" in a.text, f"{node} asks for {model}: {a.text}")
        else:
            equal((a.status, a.by), (200, by), f"{node} asks for {model}: {a.text[:200]}")
    sent = {c: ctl("counted", n, c).stdout.strip() for n, c in (("laptop", "to_colleague"), ("colleague", "to_laptop"))}
    for what, n in sent.items():
        equal(n, "0 0", f"packets and bytes {what} since the lab is up")
    # the counter does count: the same address, asked by hand, and refused there
    for a, b in (("colleague", "laptop"), ("laptop", "colleague")):
        for path in ("/api/tags", "/mesh/v1/offers", "/api/show"):
            r = get(a, path, to=ADDRESS[b], port=MESH, headers=OURS) if path != "/api/show" else post(a, path, {"model": "mine"}, to=ADDRESS[b], port=MESH)
            equal(r.status, 403, f"{a} asks {b}'s mesh port for {path}")
        check(ctl("counted", a, f"to_{b}").stdout.strip() != "0 0", "the counter does not count: this case shows nothing")
        ctl("recount", a, f"to_{b}")  # asked by hand: does not count for whoever looks next
    status = json.loads(ctl("cli", "laptop", "status", "--json").stdout)
    peer = next((p for p in status["peers"] if p["name"] == "colleague"), None)
    check(peer and "sendTo" in str(peer.get("why")), f"status on the laptop does not say why colleague is not used: {peer}")
    return f"{len(USES)} uses, {len(LISTS)} lists as the table says; laptop and colleague sent each other 0 packets"


case(body)
