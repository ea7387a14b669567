#!/usr/bin/env python3
# the real `ollama` command: list ps show run stop cp rm create pull, against Ollama itself and through tailherd
import os
import re

from lab import ENGINE, LAB_DIR, case, check, equal, get, loaded, models, run_in, unload, wait

DIRECT = {"OLLAMA_HOST": f"127.0.0.1:{ENGINE}"}
RAN = []


def cli(node, *args, direct=False):
    """Exit code and text of one command, without what changes from run to run."""
    env = {"HOME": os.path.join(LAB_DIR, node, "engine-home"), **(DIRECT if direct else {})}
    r = run_in(node, [os.environ["LAB_OLLAMA"], *args], env=env)
    RAN.append(args)
    return r.returncode, plain(r.stdout), plain(r.stderr)


def plain(text):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[⠁-⣿]", "", text).replace("\r", "\n")
    text = re.sub(r"(\d+|Less than a|About an?|A few) ?(second|minute|hour)s? (ago|from now)", "<time>", text)
    text = re.sub(r"\bin \d+[a-z]+\b|creating new layer|using existing layer", "<…>", text)
    seen, out = set(), []
    for line in (l.rstrip() for l in text.split("\n")):
        if line and line not in seen:  # progress lines are redrawn as often as the terminal likes
            seen.add(line)
            out.append(line)
    return "\n".join(out)


def same(node, *args, engine=None):
    """One command directly at the node that has the model, and through the tailherd of `node`."""
    want, got = cli(engine or node, *args, direct=True), cli(node, *args)
    if "pulling manifest" in got[2]:  # a pull first says on whose disk it lands
        got = (got[0], got[1], got[2].removeprefix(f"pulling to {node}\n"))
    equal(got, want, f"ollama {' '.join(args)} on {node}")
    return got


def says(node, args, *words, code=1):
    got = cli(node, *args)
    check(got[0] == code, f"ollama {' '.join(args)} on {node}: exit {got[0]}: {got[2]}")
    for w in words:
        check(w in got[1] + got[2], f"ollama {' '.join(args)} on {node} does not say {w!r}: {(got[1] + got[2])[-300:]}")


def names(text):
    return {l.split()[0] for l in text.splitlines()[1:]}


def local():
    """gpu, whose own engine has the models."""
    check(names(cli("gpu", "list", direct=True)[1]) <= names(cli("gpu", "list")[1]), "list lacks own models")
    for args in (("show", "tiny"), ("show", "--modelfile", "tools"), ("show", "nope"), ("run", "tiny", "hello"), ("run", "think", "hello"),
                 ("run", "embed", "hello"), ("run", "second-to-none", "hi"),
                 ("stop", "tiny"), ("stop", "nope"), ("rm", "nope"), ("cp", "nope", "x"), ("pull", "nope"), ("push", "tiny")):
        same("gpu", *args)
    cli("gpu", "run", "tiny", "hi")
    wait(10, "ps shows the loaded model", lambda: "tiny:latest" in names(cli("gpu", "ps")[1]))
    row = lambda t: next(l.split() for l in t.splitlines() if l.startswith("tiny:latest"))
    equal(row(cli("gpu", "ps")[1]), row(cli("gpu", "ps", direct=True)[1]), "the row of ps")
    changes("gpu")


def changes(node):
    """cp, create, rm land on the disk of the node where they are typed."""
    own = "tiny" if node == "gpu" else "mine"
    file = os.path.join(LAB_DIR, node, "Modelfile.cli")
    for step, direct in (("direct", True), ("through", False)):
        with open(file, "w", encoding="utf-8") as f:
            f.write(f"FROM {own}\nSYSTEM be brief\n")
        equal(cli(node, "cp", own, "copied", direct=direct)[0], 0, f"cp {step}")
        check("copied" in models(node, ENGINE), f"cp {step}: not on {node}")
        equal(cli(node, "create", "derived", "-f", file, direct=direct)[0], 0, f"create {step}")
        gguf = os.path.join(os.path.dirname(os.path.dirname(os.environ["LAB_OLLAMA"])), "gguf", "theirs.gguf")
        with open(file, "w", encoding="utf-8") as f:
            f.write(f"FROM {gguf}\n")
        equal(cli(node, "create", "fromfile", "-f", file, direct=direct)[0], 0, f"create from a file {step}")
        check({"derived", "fromfile"} <= models(node, ENGINE), f"create {step}: not on {node}")
        if not direct:
            wait(10, "what was made is listed", lambda: {"copied", "derived", "fromfile"} <= models(node))
        for m in ("copied", "derived", "fromfile"):
            equal(cli(node, "rm", m, direct=direct), (0, f"deleted '{m}'", ""), f"rm {step}")
        check(not {"copied", "derived", "fromfile"} & models(node, ENGINE), f"rm {step}: still there")


def peer():
    """laptop, for what only gpu has."""
    for args in (("run", "tiny", "hello"), ("run", "think", "hello"), ("run", "embed", "hello"), ("show", "tiny"), ("show", "nope"), ("run", "second-to-none", "hi")):
        same("laptop", *args, engine="gpu")
    equal(cli("laptop", "run", "tiny@gpu", "hello"), cli("gpu", "run", "tiny", "hello", direct=True), "run with a pin")
    wait(15, "ps shows what a peer has loaded", lambda: "tiny:latest" in names(cli("laptop", "ps")[1]))
    before = models("gpu", ENGINE)
    says("laptop", ("stop", "tiny"), "gpu", "ollama stop tiny@gpu")
    check("tiny" in loaded("gpu"), "stop on the laptop unloaded the peer's model")
    says("laptop", ("rm", "tiny"), "gpu")
    check("tiny" in loaded("gpu"), "rm on the laptop unloaded the peer's model")
    says("laptop", ("cp", "tiny", "copied"), "gpu")
    says("laptop", ("rm", "tiny@gpu"), "gpu")
    equal(models("gpu", ENGINE), before, "the peer's models")
    changes("laptop")


def body():
    unload("gpu")
    local()
    peer()
    equal(get("laptop", "/api/version").status, 200, "the end")
    return f"{len(RAN)} commands as Ollama's own, on the node that has the model and on one that has not"


case(body)
