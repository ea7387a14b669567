#!/usr/bin/env python3
# a peer's tailherd and Ollama are stopped (SIGSTOP; its kernel still accepts): the same promises as for a black hole
import outage
from lab import case, ctl


def sleep(node):
    ctl("freeze", "tailherd", node)
    ctl("freeze", "ollama", node)


def body():
    where, took = outage.moves_on(sleep)
    return f"{where} asleep: the waiting request was answered elsewhere after {took:.2f} s; {outage.unharmed(where)}"


case(body)
