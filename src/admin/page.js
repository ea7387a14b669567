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
  const seconds = (ms) => (ms === null || ms === undefined ? null : `${(ms / 1000).toFixed(2)} s`);
  const who = (r) => (r.from ? `${r.caller} (${r.from})` : r.client === "other" ? r.caller : r.client);
  table("running", ["running", "model", "node", "now", "for", "left", "pieces"], s.running.map((r) => [
    who(r), r.model, r.node, r.state, seconds(r.runsMs), seconds(r.leftMs), r.pieces,
  ]));
  // Newest first.
  table("requests", ["ended", "caller", "model", "node", "wait", "first", "took", "tokens", "per s", "moves", "how", "why"],
    s.requests.slice(0, 50).map((r) => [
      r.at, who(r), r.model, r.node, seconds(r.waitMs), seconds(r.ttftMs), seconds(r.tookMs), r.tokens,
      r.tokensPerSecond === null ? null : Math.round(r.tokensPerSecond), r.moves, r.outcome, r.why,
    ]));
};

const look = () => fetch("/status").then((r) => r.json()).then(show).catch(() => {
  document.getElementById("mesh").textContent = "tailherd does not answer";
});
look();
setInterval(look, 3000);
