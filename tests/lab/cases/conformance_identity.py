#!/usr/bin/env python3
# the comparer itself: Ollama against Ollama is equal in every case, and a changed answer is never called equal
import copy

from matrix import ask, plain
from lab import ENGINE, Answer, case, check, equal


def body():
    verdicts = ask.run(("gpu", ENGINE), "gpu", "local")
    bad = [f"{v.case}: {v.note}" for v in verdicts if v.kind != "equal"]
    check(not bad, f"{len(bad)} of {len(verdicts)} differ from themselves: {bad[0] if bad else ''}")
    head = {"content-type": "application/x-ndjson"}
    good = Answer(200, head, b'{"model":"tiny","created_at":"a","response":" one","done":false}\n{"done":true,"eval_count":3}\n', 0, 0)
    changes = {
        "status": Answer(500, head, good.body, 0, 0),
        "head": Answer(200, {"content-type": "application/json"}, good.body, 0, 0),
        "a lost line": Answer(200, head, good.body.split(b"\n", 1)[1], 0, 0),
        "a doubled line": Answer(200, head, good.body.split(b"\n")[0] + b"\n" + good.body, 0, 0),
        "another word": Answer(200, head, good.body.replace(b"one", b"two"), 0, 0),
        "another count": Answer(200, head, good.body.replace(b"3", b"4"), 0, 0),
        "a missing end": Answer(200, head, good.body.rstrip(b"\n"), 0, 0),
        "another field": Answer(200, head, good.body.replace(b'"done":false', b'"done":false,"x":1'), 0, 0),
    }
    for what, changed in changes.items():
        check(plain.first_difference(plain.plain(good), plain.plain(changed)), f"the comparer does not see {what}")
    equal(plain.first_difference(plain.plain(good), plain.plain(copy.deepcopy(good))), None, "an answer and its copy")
    return f"{len(verdicts)} cases equal to themselves, {len(changes)} changes seen"


case(body)
