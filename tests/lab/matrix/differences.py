"""Where an answer through tailherd is meant to differ from Ollama's own: each difference has a name, a reason, and a rule
that says exactly what must come instead. A rule gets the plain direct answer and returns the plain answer it expects, or
raises `Other` when `through` is not what it names. Rules are tried only after the two answers were found unequal.
"""
import copy
import re


class Other(Exception):
    """Not the named difference."""


def _need(true, text):
    if not true:
        raise Other(text)


def _rows(plain):
    body = plain["body"]
    _need(isinstance(body, dict), "no JSON object")
    rows = body.get("models", body.get("data"))
    _need(isinstance(rows, list), "no list")
    return rows


def _union(direct, through):
    """Each row of the engine, field for field, with `mesh` beside them; more rows are other nodes'."""
    _need(through["status"] == direct["status"] and through["head"] == direct["head"], "status or head differ")
    rows = {r.get("name", r.get("id")): r for r in _rows(through)}
    _need(len(rows) == len(_rows(through)), "a name is listed twice")
    for want in _rows(direct):
        name = want.get("name", want.get("id"))
        got = copy.deepcopy(rows.pop(name, None))
        _need(got is not None, f"{name} is not listed")
        got.pop("mesh", None)
        if got != want:
            raise Other(f"row {name}: {got} is not {want}")
    for name, extra in rows.items():
        _need(extra.get("mesh"), f"{name} is listed, is not the engine's, and says nothing of the mesh")


def _same_but(change):
    def rule(direct, through):
        want = copy.deepcopy(direct)
        change(want)
        _need(want == through, "more differs than the name says")
    return rule


def _fill(head):
    """A rule for a changed head: these fields, everything else equal."""
    def rule(direct, through):
        want = copy.deepcopy(direct)
        for k, v in head.items():
            if v is None:
                want["head"].pop(k, None)
            else:
                want["head"][k] = v
        _need(want == through, "more than those heads differs")
    return rule


# name: (what it is, in words for the reader of the matrix)
NAMES = {}
# (case, who): who is "local" (the model is this node's), "peer" (only a peer holds it) or "both"
TABLE = []


def difference(name, why, who, cases, rule):
    NAMES[name] = why
    TABLE.append((name, who, set(cases.split()), rule))


def explain(case, who, direct, through):
    """The name of the intended difference, or None with the reasons why those listed for the case do not hold."""
    reasons = []
    for name, for_who, cases, rule in TABLE:
        if case in cases and for_who in (who, "both"):
            try:
                rule(direct, through)
                return name, []
            except Other as e:
                reasons.append(f"{name}: {e}")
    return None, reasons


difference("union", "lists hold the whole mesh: the engine's rows are unchanged but for a field `mesh`, other nodes' rows follow",
           "both", "tags v1-models ps ps-empty ps-after", _union)


def _error(status, text):
    """Exactly this native error."""
    def rule(direct, through):
        _need(through["status"] == status, f"status {through['status']}")
        _need(through["body"] == {"error": text}, f"text {through['body']}")
    return rule


difference("stop names the node", "an unload means this node's memory; a peer's model is never unloaded by its bare name, the answer says how to mean it",
           "peer", "generate-unload chat-unload", _error(400, "tiny runs on gpu: ollama stop tiny@gpu"))

difference("this node's disk", "copy, delete and create mean this node's disk; what only a peer holds is refused with the node's name",
           "peer", "copy", _error(404, "model 'tiny' not found on this device (it is on gpu: ollama cp tiny@gpu NEW@gpu)"))


def _nothing_made(direct, through):
    _need(direct["status"] == 200 and through["status"] == 404, f"status {through['status']}")
    name = through["body"].get("error", "")
    _need(name in ("model 'copied' not found", "model 'derived' not found"), f"text {name}")


difference("nothing was made here", "a copy or a model made from a peer's was refused before, so there is nothing to delete on this node",
           "peer", "delete delete-derived", _nothing_made)


def _no_paths(direct, through):
    want = copy.deepcopy(direct)

    want["body"]["modelfile"] = re.sub(r"(?m)^(#? ?FROM) \S*[/\\]blobs[/\\]", r"\1 ", want["body"]["modelfile"])
    details = want["body"]["details"]
    if details.get("parent_model"):  # Ollama of old says the path here, too
        details["parent_model"] = details["parent_model"].rsplit("/", 1)[-1]
    got = copy.deepcopy(through)
    if want != got:
        for k in want["body"]:
            if want["body"][k] != got["body"].get(k):
                raise Other(f"{k}: {got['body'].get(k)!r:.300} is not {want['body'][k]!r:.300}")
        raise Other("more differs than the path")


def _no_tables(direct, through):
    """The answer without `verbose`: the tokenizer's tables are null, as Ollama has them then."""
    want = copy.deepcopy(direct)
    tables = [k for k, v in want["body"]["model_info"].items() if isinstance(v, list)]
    _need(tables, "nothing verbose in Ollama's own answer")
    for k in tables:
        want["body"]["model_info"][k] = None
    _no_paths(want, through)


difference("no tables of peers", "show of a peer's model is answered at once from what is kept of it, which is without the tokenizer's tables",
           "peer", "show-verbose", _no_tables)
difference("no paths of peers", "show of a peer's model does not tell where on that machine the file lies", "peer", "show show-name-field", _no_paths)


def _ours_too(direct, through):
    want, got = copy.deepcopy(direct), copy.deepcopy(through)
    field = "access-control-allow-headers"
    theirs = {h.strip().lower() for h in want["head"].pop(field, "").split(",")}
    ours = {h.strip().lower() for h in got["head"].pop(field, "").split(",")}
    _need(want == got, "more differs than the allowed headers")
    _need(theirs <= ours, f"missing {theirs - ours}")
    _need(all(h.startswith("x-tailherd-") for h in ours - theirs), f"extra {ours - theirs}")


difference("our headers", "a page may send tailherd's own request headers too", "both", "cors-preflight", _ours_too)


def _repaired(direct, through):
    """Ollama's tail, then one item of ours that says what happened, in the stream's dialect."""
    want, got = copy.deepcopy(direct), copy.deepcopy(through)
    added = got["body"][len(want["body"]):]
    _need(got["body"][:len(want["body"])] == want["body"], f"the items before differ: {got['body'][:2]}")
    got["body"] = want["body"]
    _need(want == got, "status or head differ")
    _need(len(added) == 1, f"{len(added)} items added")
    event, data = added[0]
    _need(isinstance(data, dict) and isinstance(data.get("error"), dict), f"no error object: {data}")
    _need(bool(data["error"].get("message")), "no text")
    _need((event == "error") == (data.get("type") == "error"), f"event {event} with {data}")


difference("a cut is said", "where an engine dies in mid-stream Ollama's /v1 just ends; the reader is told with the dialect's error item",
           "both", "kill-v1-chat kill-v1-messages kill-v1-responses", _repaired)


def _pin(direct, through):
    _need(direct["status"] == 400, "Ollama takes @ now")
    _need(through["status"] in (404, 503) and "desk" in str(through["body"]), f"{through['status']} {through['body']}")


difference("a pin", "`model@node` names a node; Ollama knows no @ in names", "both", "show-badname", _pin)


def _pulls(direct, through):
    _need(through["status"] == 200 and through["body"][0] == {"status": "pulling manifest"}, f"{through['status']} {through['body'][:1]}")


difference("made here", "create means this node's disk: its Ollama does not have the peer's model and does what it then does, pull it",
           "peer", "create-from", _pulls)
