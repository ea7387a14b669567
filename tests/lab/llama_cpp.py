"""A real llama.cpp server, as the wheel of the lab's engine has it: MODEL.gguf NAME PORT. Without a NAME it names the model itself."""
import signal
import sys

import xllamacpp

c = xllamacpp.CommonParams()
c.model.path, name, c.port = sys.argv[1], sys.argv[2], int(sys.argv[3])
c.hostnames = ["127.0.0.1"]
c.n_ctx, c.n_parallel, c.warmup, c.ui, c.use_jinja = 8192, 2, False, False, True
c.endpoint_props = True
if name:
    c.model_alias = {name}
server = xllamacpp.Server(c)
print("listening", server.listening_address, flush=True)
signal.pause()
