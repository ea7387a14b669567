// Shows /status. Every text goes in as text, never as markup.
"use strict";

const cell = (tag, text) => {
  const node = document.createElement(tag);
  node.textContent = text === null || text === undefined ? "-" : String(text);
  return node;
};

const table = (id, head, rows) => {
  const row = (tag, texts) => {
    const tr = document.createElement("tr");
    tr.append(...texts.map((text) => cell(tag, text)));
    return tr;
  };
  document.getElementById(id).replaceChildren(row("th", head), ...rows.map((r) => row("td", r)));
};

const show = (s) => {
  const why = s.why ? ` (${s.why})` : "";
  document.getElementById("mesh").textContent = `${s.node.name}, tailherd ${s.version}: ${s.rung}${why}`;
  table("peers", ["node", "kind", "owner", "path", "round trip"], s.peers.map((p) => {
    const best = p.paths.find((x) => x.state === "up") || {};
    return [p.name, p.kind, p.owner, p.path || p.why, best.rttMs === undefined ? "-" : `${best.rttMs} ms`];
  }));
  table("models", ["model", "nodes", "loaded on"], s.models.map((m) => [
    m.name,
    m.offers.map((o) => o.peer).join(", "),
    m.offers.filter((o) => o.loaded).map((o) => o.peer).join(", "),
  ]));
  table("requests", ["at", "caller", "model", "node", "outcome", "ms"], s.requests.slice(-20).reverse().map((r) => [
    r.at, r.caller, r.model, r.node, r.outcome, r.tookMs,
  ]));
};

const look = () => fetch("/status").then((r) => r.json()).then(show).catch(() => {
  document.getElementById("mesh").textContent = "tailherd does not answer";
});
look();
setInterval(look, 3000);
