"""Where an answer through tailherd is meant to differ from Ollama's own: each difference has a name, a reason, and a rule
that says exactly what must come instead. A rule gets the plain direct answer and returns the plain answer it expects, or
raises `Other` when `through` is not what it names. Rules are tried only after the two answers were found unequal.
"""
import copy


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
