#!/usr/bin/env python3
# a peer's cable swallows everything: lists < 100 ms, others' models untouched, a request that waited there moves on in 1.5 s
import outage
from lab import case, ctl


def body():
    where, took = outage.moves_on(lambda node: ctl("blackhole", "on", node))
    return f"{where} black-holed: the waiting request was answered elsewhere after {took:.2f} s; {outage.unharmed(where)}"


case(body)
