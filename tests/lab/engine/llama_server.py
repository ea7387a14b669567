"""Stand-in for llama.cpp's `llama-server` executable, for Ollama >= 0.30 built with `go install` (which has no engine of
its own and spawns `llama-server`).  It is the real llama.cpp server inside the prebuilt wheel `xllamacpp`; this file only
translates the command line.

LAB_LOAD_DELAY names a file; while it holds a number, a load takes that many seconds more. That is how the lab makes a
cold load of minutes with a model of one megabyte.
"""
import os
import signal
import sys
import time

import argparse

p = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
p.add_argument("--model", "-m")
p.add_argument("--port", type=int, default=8080)
p.add_argument("--host", default="127.0.0.1")
p.add_argument("-c", "--ctx-size", type=int, default=0)
p.add_argument("-np", "--parallel", type=int, default=1)
p.add_argument("-b", "--batch-size", type=int, default=0)
p.add_argument("-ub", "--ubatch-size", type=int, default=0)
p.add_argument("-t", "--threads", type=int, default=0)
p.add_argument("--embedding", action="store_true")
p.add_argument("--context-shift", action="store_true")
p.add_argument("--no-jinja", action="store_true")
p.add_argument("--chat-template", default="")
p.add_argument("--list-devices", action="store_true")
a, rest = p.parse_known_args()

if a.list_devices:
    print("Available devices:")
    sys.exit(0)
if not a.model:
    print("system_info: n_threads = 1 | CPU : LLAMAFILE = 1 |", file=sys.stderr, flush=True)
    signal.pause()

try:
    with open(os.environ["LAB_LOAD_DELAY"], encoding="utf-8") as f:
        time.sleep(float(f.read()))
except (KeyError, OSError, ValueError):
    pass

import xllamacpp as x

c = x.CommonParams()
c.model.path = a.model
c.hostnames = [a.host]
c.port = a.port
c.n_parallel = a.parallel
if a.ctx_size:
    c.n_ctx = a.ctx_size
if a.batch_size:
    c.n_batch = a.batch_size
if a.ubatch_size:
    c.n_ubatch = a.ubatch_size
if a.threads:
    c.cpuparams.n_threads = a.threads
c.embedding = a.embedding
c.ctx_shift = a.context_shift
c.use_jinja = not a.no_jinja
if a.chat_template:
    c.chat_template = a.chat_template
c.warmup = False
c.ui = False
c.endpoint_metrics = True
c.endpoint_props = True
print("system_info: n_threads = 1 | CPU : LLAMAFILE = 1 |", file=sys.stderr, flush=True)
s = x.Server(c)
print("listening", s.listening_address, file=sys.stderr, flush=True)
signal.pause()
