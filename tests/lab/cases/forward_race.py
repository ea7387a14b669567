#!/usr/bin/env python3
# slow: 3,000 forwarded connections, 64 at a time, hit the moment before tailscaled can name them: none is taken for local (rule 1)
from concurrent.futures import ThreadPoolExecutor

from lab import ADDRESS, ADMIN, APPS, Http, case, check

N = 3000


def one(i):
    port = (APPS, ADMIN)[i % 2]
    try:
        with Http("colleague", to=ADDRESS["nas"], port=port, timeout=30) as h:
            a = h.ask("GET", "/api/tags" if port == APPS else "/metrics")
    except OSError as e:
        return None, f"{type(e).__name__}"
    if port == ADMIN:
        return ("admin served" if a.status == 200 else None), None
    return ("the whole mesh listed" if a.status == 200 and "tiny:latest" in a.text else None), None


def body():
    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(one, range(N)))
    wrong = [w for w, _ in results if w]
    check(not wrong, f"{len(wrong)} of {N} taken for local: {wrong[0] if wrong else ''}")
    lost = sum(1 for _, e in results if e)
    check(lost < N // 20, f"{lost} of {N} got no answer: too few to say anything")
    return f"{N} connections, none local, {lost} without an answer"


case(body)
