// What waits, and where the last requests went.

import { setText } from "./figures.js";
import { make } from "./fleet.js";
import { NONE, at, count, known, reason, time, tier, usd } from "./words.js";

export const KEPT = 20; // placements

const keyOf = (line) => `${line.request_id} ${line.replica} ${line.unix_s}`;

/** The newest first; a line told again, with its outcome, takes its place. */
export function keepPlacements(before, told) {
  const found = new Map(before.map((line) => [keyOf(line), line]));
  for (const line of told) found.set(keyOf(line), line);
  return [...found.values()].sort((a, b) => b.unix_s - a.unix_s).slice(0, KEPT);
}

const NOTE = "where each request went, and why; open one for those it was compared with";
const OUTCOMES = { completed: "done", cancelled: "cancelled by its client" };

export class Placements {
  constructor(ask) {
    this.ask = ask; // (path) -> document of the admin API
    this.list = document.getElementById("placements");
    this.none = document.getElementById("no-placements");
    this.note = document.getElementById("placements-note");
    this.hovers = matchMedia("(hover: hover)"); // a finger leaves nothing behind that hovers
    this.nodes = new Map();
  }

  paint(state) {
    this.none.hidden = state.placements.length > 0;
    const newer = state.placements.filter((line) => !this.nodes.has(keyOf(line)));
    const held = newer.length > 0 && this.read();
    setText(this.note, held ? `held while you read: ${count(newer.length)}${newer.length < KEPT ? "" : " or more"} newer` : NOTE);
    if (!held) this.arrange(state.placements);
    for (const line of state.placements) {
      const node = this.nodes.get(keyOf(line));
      if (!node) continue;
      setText(node.ttft, known(line.ttft_s) ? `first token ${time(line.ttft_s)}` : "");
      setText(node.outcome, line.outcome === null ? "running" : (OUTCOMES[line.outcome] ?? line.outcome));
      node.outcome.dataset.outcome = line.outcome ?? "running";
    }
  }

  /** Whether somebody reads the list, which then must not move: one is open, or a pointer or the keyboard is there. */
  read() {
    return this.list.querySelector("details[open], :focus-visible") !== null || (this.hovers.matches && this.list.matches(":hover"));
  }

  arrange(lines) {
    const wanted = new Set(lines.map(keyOf));
    for (const [key, node] of this.nodes) {
      if (wanted.has(key)) continue;
      node.remove();
      this.nodes.delete(key);
    }
    let at = this.list.firstElementChild;
    for (const line of lines) {
      const key = keyOf(line);
      let node = this.nodes.get(key);
      if (node === undefined) {
        node = this.node(line);
        this.nodes.set(key, node);
      }
      if (node === at) at = at.nextElementSibling;
      else this.list.insertBefore(node, at);
    }
  }

  node(line) {
    const node = document.createElement("li");
    const details = make("details");
    const summary = make("summary");
    const when = make("time", "when", at(line.unix_s));
    when.dateTime = new Date(line.unix_s * 1000).toISOString();
    const where = make("span", "where");
    where.append(make("span", "arrow", "→ "), make("b", "", line.replica), " ", badge(line.cost_tier));
    where.firstChild.ariaHidden = "true";
    node.ttft = make("span");
    node.outcome = make("span", "outcome");
    const how = make("span", "how");
    how.append(make("span", "", line.model), make("span", "", `${line.service_tier} tier`), make("span", "", `queued ${time(line.queued_s)}`), node.ttft);
    summary.append(when, where, make("span", "why", reason(line)), node.outcome, how);
    details.append(summary);
    details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(this.more(line)));
    details.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && details.open) {
        details.open = false;
        summary.focus();
        event.stopPropagation();
      }
    });
    node.append(details);
    return node;
  }

  more(line) {
    const box = make("div", "more");
    if (line.candidates.length) box.append(candidates(line));
    box.append(make("p", "quiet", "as the gateway put it"), make("code", "formula", line.formula));
    const button = make("button", "plain", "The whole decision");
    button.type = "button";
    button.addEventListener("click", async () => {
      button.disabled = true;
      const text = make("pre", "decision");
      text.tabIndex = 0;
      try {
        text.textContent = JSON.stringify(await this.ask(`/admin/decisions/${encodeURIComponent(line.request_id)}`), null, 1);
      } catch (error) {
        text.textContent = error.message;
      }
      button.replaceWith(text);
    });
    box.append(button);
    return box;
  }
}

export function badge(costTier) {
  const node = make("span", "badge", tier(costTier));
  node.dataset.tier = costTier;
  return node;
}

function candidates(line) {
  const table = make("table", "candidates");
  const head = make("tr");
  for (const [text, number] of [["compared with", 0], ["$ a thousand such", 1], ["first token", 1], ["a token", 1], ["cached", 1], ["KV blocks left", 1], ["objective", 0]]) {
    const cell = make("th", number ? "number" : "", text);
    cell.scope = "col";
    head.append(cell);
  }
  table.createTHead().append(head);
  const body = table.createTBody();
  line.candidates.forEach((one, i) => {
    const row = body.insertRow();
    if (i === 0) row.className = "chosen";
    const name = make("th", "", one.replica + (i === 0 ? " (chosen)" : ""));
    name.scope = "row";
    row.append(name);
    for (const text of [one.usd ? usd(one.usd * 1000) : "adds $0", time(one.ttft_s), time(one.tpot_s), count(one.cached_tokens), known(one.headroom_blocks) ? count(one.headroom_blocks) : NONE]) row.append(make("td", "number", text));
    row.append(make("td", "", one.meets ? "met" : "missed"));
  });
  return table;
}

export function paintQueue(state) {
  const table = document.getElementById("queue");
  const rows = [...state.queue].sort((a, b) => b.oldest_s - a.oldest_s).slice(0, 30);
  table.hidden = rows.length === 0;
  document.getElementById("no-queue").hidden = rows.length > 0;
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((row, i) => {
    const line = body.rows[i] ?? body.insertRow();
    [row.service_tier, row.tenant, row.model, count(row.depth), time(row.oldest_s)].forEach((text, j) => {
      const cell = line.cells[j] ?? line.insertCell();
      if (j > 2) cell.className = "number";
      else if (cell.title !== text) cell.title = text; // it may be cut
      setText(cell, text);
    });
  });
}
