// The cards. Only those in sight exist as nodes, and only what has changed in them is written: a thousand replicas scroll as ten do.

import { setText } from "./figures.js";
import { NONE, count, kv, known, percent, rate, short, stateOf, tier, usd } from "./words.js";

const OVERSCAN = 2; // rows above and below what is in sight
const SORT_MS = 4_000; // by figures that move: not more often, or nothing could be read

const TROUBLE = { down: 0, suspect: 1, reclaiming: 2, draining: 3, starting: 4, warming: 4, waking: 5, asleep: 6, ready: 7 };

const ORDERS = {
  name: () => 0,
  price: (a, b) => (a.usd_per_hour / a.gpus || Infinity) - (b.usd_per_hour / b.gpus || Infinity) || 0,
  fullness: (a, b) => (kv(b)?.used ?? -1) - (kv(a)?.used ?? -1),
  rate: (a, b) => b.output_tokens_per_s - a.output_tokens_per_s,
  trouble: (a, b) => rank(a) - rank(b),
};
const MOVING = new Set(["fullness", "rate", "trouble"]);
const names = new Intl.Collator("en", { numeric: true });
const rank = (card) => Math.min(TROUBLE[card.lifecycle] ?? 4, card.circuit === "closed" ? 7 : 3);

export class Fleet {
  constructor() {
    this.region = document.getElementById("fleet");
    this.list = document.getElementById("cards");
    this.none = document.getElementById("no-cards");
    this.counts = document.getElementById("counts");
    this.filter = document.getElementById("filter");
    this.sort = document.getElementById("sort");
    this.shown = new Map(); // name -> its node
    this.spare = []; // nodes of cards that are out of sight
    this.order = []; // names, filtered and sorted
    this.sorted = 0; // when
    this.all = "";
    this.state = null;
    this.marks = null;
    this.drawing = false;
    const again = () => this.state && (this.arrange(), this.draw());
    this.filter.addEventListener("input", again);
    this.sort.addEventListener("change", again);
    this.region.addEventListener("scroll", () => this.soon(), { passive: true });
    this.size = null; // measured when it is next needed
    new ResizeObserver(() => {
      this.size = null;
      this.soon();
    }).observe(this.region);
    this.counts.addEventListener("click", (event) => {
      const word = event.target.closest("button")?.dataset.word;
      if (word === undefined) return;
      this.filter.value = this.filter.value === word ? "" : word;
      again();
    });
  }

  /** Once an event. */
  paint(state, marks, changed) {
    this.state = state;
    this.marks = marks;
    if (changed || (MOVING.has(this.sort.value) && performance.now() - this.sorted > SORT_MS)) this.arrange();
    this.tally();
    this.draw();
  }

  soon() {
    if (this.drawing || !this.state) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.draw(false);
    });
  }

  arrange() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const order = ORDERS[this.sort.value];
    const cards = [...this.state.cards.values()].filter((card) => words.every((word) => haystack(card).includes(word)));
    cards.sort((a, b) => order(a, b) || names.compare(a.name, b.name));
    this.order = cards.map((card) => card.name);
    this.sorted = performance.now();
    const empty = this.order.length === 0;
    this.none.hidden = !empty;
    if (empty) setText(this.none, this.state.cards.size ? "No replica fits the filter. Esc clears it." : "No replicas are configured: describe one under `replicas`, or start with --backend NAME=URL.");
    this.region.scrollTop = Math.min(this.region.scrollTop, this.region.scrollHeight);
  }

  tally() {
    const found = new Map();
    for (const card of this.state.cards.values()) {
      const [glyph, word] = stateOf(card, 0);
      const one = found.get(word) ?? { glyph, many: 0, lifecycle: card.lifecycle };
      one.many += 1;
      found.set(word, one);
    }
    const text = JSON.stringify([...found].map(([word, { many }]) => [word, many]));
    if (text === this.all) return;
    this.all = text;
    this.counts.replaceChildren(...[...found].sort((a, b) => b[1].many - a[1].many).map(([word, { glyph, many, lifecycle }]) => {
      const button = make("button", "chip");
      button.type = "button";
      button.dataset.word = word;
      button.dataset.lifecycle = lifecycle;
      button.title = `show only these`;
      const mark = make("span", "glyph", glyph);
      mark.ariaHidden = "true";
      button.append(mark, ` ${count(many)} ${word}`);
      return button;
    }));
  }

  /** The cards in sight, and room for the others. `fresh`: there is news also for those that are there already. */
  draw(fresh = true) {
    const many = this.order.length;
    if (this.region.classList.contains("many") !== many > 12) {
      this.region.classList.toggle("many", many > 12);
      this.size = null;
    }
    if (!many) {
      this.place([], 0);
      this.list.style.padding = "0";
      return;
    }
    if (!this.list.firstElementChild) this.place(this.order.slice(0, 1), 0); // whose height all have
    this.size ??= this.measure();
    const { height, columns, sight } = this.size;
    const rows = Math.ceil(many / columns);
    const first = Math.max(0, Math.min(Math.floor(this.region.scrollTop / height) - OVERSCAN, rows));
    const end = Math.min(rows, Math.ceil((this.region.scrollTop + Math.max(sight, many > 12 ? 0 : innerHeight * 4)) / height) + OVERSCAN);
    this.place(this.order.slice(first * columns, end * columns), first * columns, fresh);
    this.list.style.paddingTop = `${first * height}px`;
    this.list.style.paddingBottom = `${Math.max(0, rows - end) * height}px`;
  }

  /** What only a change of the window's or the region's size can change; to ask makes the browser lay out. */
  measure() {
    const style = getComputedStyle(this.list);
    return {
      height: this.list.firstElementChild.offsetHeight + (parseFloat(style.rowGap) || 0),
      columns: Math.max(1, style.gridTemplateColumns.split(" ").length),
      sight: Math.min(this.region.clientHeight || innerHeight, innerHeight),
    };
  }

  place(wanted, from, fresh = true) {
    const kept = new Set(wanted);
    for (const [name, node] of this.shown) {
      if (kept.has(name)) continue;
      this.shown.delete(name);
      this.spare.push(node);
      node.remove();
    }
    let at = this.list.firstElementChild;
    wanted.forEach((name, i) => {
      let node = this.shown.get(name);
      const there = node !== undefined;
      if (!there) {
        node = this.spare.pop() ?? this.node();
        this.shown.set(name, node);
      }
      if (node === at) at = at.nextElementSibling;
      else this.list.insertBefore(node, at);
      if (there && !fresh) return;
      node.ariaPosInSet = String(from + i + 1);
      node.ariaSetSize = String(this.order.length);
      fill(node, this.state.cards.get(name), this.marks, this.state.now());
    });
  }

  node() {
    const node = document.createElement("li");
    node.className = "card";
    node.parts = {};
    const add = (into, tag, name, text) => {
      const one = make(tag, name, text);
      node.parts[name] = one;
      into.append(one);
      return one;
    };
    const head = add(node, "div", "head");
    add(head, "h3", "name");
    add(head, "span", "price");
    const about = add(node, "p", "about");
    add(about, "span", "tier badge");
    add(about, "span", "hardware");
    add(about, "span", "models");
    const bar = add(node, "div", "bar");
    bar.role = "img";
    for (const part of ["held", "growth", "foreign"]) add(bar, "i", `part ${part}`);
    const kvLine = add(node, "p", "kv");
    add(kvLine, "span", "used");
    add(kvLine, "span", "room");
    const figures = add(node, "dl", "numbers");
    for (const [name, label] of [["running", "running"], ["engine", "engine queue"], ["rate", "tokens/s"], ["mtok", "$ per Mtok"]]) {
      const pair = make("div");
      pair.append(make("dt", "", label));
      add(pair, "dd", name);
      figures.append(pair);
    }
    const foot = add(node, "p", "foot");
    const state = add(foot, "span", "lifecycle");
    const glyph = add(state, "span", "glyph");
    glyph.ariaHidden = "true";
    add(state, "span", "word");
    add(foot, "span", "more");
    add(foot, "span", "tags");
    return node;
  }
}

/** Writes a card into its node; what is the same is left alone. */
function fill(node, card, marks, now) {
  const put = (name, text) => setText(node.parts[name], text);
  put("name", card.name);
  put("price", card.usd_per_hour ? `${usd(card.usd_per_hour)}/h` : "no price");
  put("tier badge", tier(card.cost_tier));
  put("hardware", `${card.gpus > 1 ? `${card.gpus} × ` : ""}${card.gpu === "unknown" ? "GPU not told" : card.gpu}`);
  put("models", card.models.join(", ") || "no model yet");
  set(node, "tier", card.cost_tier);
  set(node, "lifecycle", card.lifecycle);
  set(node, "circuit", card.circuit);

  const room = kv(card);
  for (const part of ["held", "growth", "foreign"]) width(node.parts[`part ${part}`], room ? room[part] : part === "held" ? card.kv_usage_ratio ?? 0 : 0);
  put("used", room ? `KV ${percent(room.used)} used` : known(card.kv_usage_ratio) ? `KV ${percent(card.kv_usage_ratio)}, says the engine` : "KV size not told");
  put("room", room ? (known(room.freeTokens) ? `${short(room.freeTokens)} tokens free` : `${percent(room.free)} free`) : "");
  const said = room
    ? `KV cache: ${percent(room.held)} held, ${percent(room.growth)} expected growth, ${percent(room.foreign)} held for others, ${percent(room.free)} free`
    : node.parts.used.textContent;
  if (node.parts.bar.ariaLabel !== said) node.parts.bar.ariaLabel = said;

  put("running", known(card.max_num_seqs) ? `${count(card.running)} / ${count(card.max_num_seqs)}` : count(card.running));
  put("engine", count(card.waiting));
  put("rate", rate(card.output_tokens_per_s));
  put("mtok", known(card.usd_per_million_output_tokens) ? usd(card.usd_per_million_output_tokens).slice(1) : NONE);

  const [glyph, word, more] = stateOf(card, now);
  put("glyph", glyph);
  put("word", word);
  put("more", more);
  if (node.parts.more.title !== more) node.parts.more.title = more;
  const tags = [];
  if (marks.cheapest.has(card.name)) tags.push("cheapest");
  if (marks.fullest === card.name) tags.push("fullest");
  if (marks.last === card.name) tags.push("last request");
  if (node.parts.tags.dataset.all !== tags.join()) {
    node.parts.tags.dataset.all = tags.join();
    node.parts.tags.replaceChildren(...tags.map((tag) => make("span", "tag", tag)));
  }
}

const set = (node, name, value) => node.dataset[name] === value || (node.dataset[name] = value);

function width(part, ratio) {
  const text = ratio > 0 ? `${Math.max(ratio * 100, 0.6).toFixed(1)}%` : "0";
  if (part.style.width !== text) part.style.width = text;
}

const haystack = (card) => [card.name, card.gpu, tier(card.cost_tier), card.cost_tier, stateOf(card, 0)[1], card.backend, card.reason ?? "", ...card.models].join(" ").toLowerCase();

export function make(tag, name = "", text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  return node;
}
