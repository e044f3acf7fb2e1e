// The top of the page: three answers, and the figures of the last two minutes.

import { NONE, count, kv, known, percent, rate, reason, short, time, tier, usd } from "./words.js";

const KEPT = 120; // pulses, a second each
const SMOOTH = 5; // of them, for what is shown as a rate
const FRESH = 10; // ... in which a quantile must have been told to count as now

const by = (id) => document.getElementById(id);

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const put = (id, text) => setText(by(id), text);

/** The replicas that stand out: names of the cheapest ready ones, the fullest, the one that was chosen last. */
export function marks(state) {
  let price = Infinity, fullest = null, most = 0;
  const cheapest = new Set();
  const perGpu = new Set([...state.cards.values()].map((card) => card.gpus)).size > 1;
  for (const card of state.cards.values()) {
    if (card.lifecycle === "ready" && card.circuit !== "open" && card.usd_per_hour > 0) {
      const one = perGpu ? card.usd_per_hour / card.gpus : card.usd_per_hour;
      if (one < price - 1e-9) {
        price = one;
        cheapest.clear();
      }
      if (one < price + 1e-9) cheapest.add(card.name);
    }
    const used = kv(card)?.used ?? card.kv_usage_ratio ?? 0;
    if (used > most) [fullest, most] = [card.name, used];
  }
  return { cheapest, price, perGpu, fullest, most, last: state.placements[0]?.replica ?? null };
}

export function paintAnswers(state, found) {
  const [first] = found.cheapest;
  if (first === undefined) {
    put("answer-cheapest", state.cards.size ? "none" : NONE);
    put("answer-cheapest-why", state.cards.size ? "no replica that is ready has a price" : " ");
  } else {
    const others = found.cheapest.size - 1;
    put("answer-cheapest", first + (others ? ` and ${count(others)} more` : ""));
    const paid = [...state.cards.values()].some((card) => card.cost_tier === "reserved" && card.lifecycle === "ready");
    const note = paid && state.cards.get(first).cost_tier !== "reserved" ? " · work on reserved ones adds $0" : "";
    put("answer-cheapest-why", `${usd(found.price)}${found.perGpu ? " a GPU-hour" : " an hour"} · ${tier(state.cards.get(first).cost_tier)}${note}`);
  }
  const full = found.fullest === null ? null : state.cards.get(found.fullest);
  put("answer-fullest", full?.name ?? (state.cards.size ? "all are empty" : NONE));
  const room = full && kv(full);
  put("answer-fullest-why", !full ? " " : `${percent(found.most)} of its KV cache${room && known(room.freeTokens) ? ` · ${short(room.freeTokens)} tokens free` : ""} · ${count(full.running)} running`);
  const line = state.placements[0];
  put("answer-last", line?.replica ?? (state.cards.size ? "none yet" : NONE));
  put("answer-last-why", line ? reason(line) : " ");
}

export function paintFigures(state) {
  const pulses = state.pulses, money = state.money;
  put("spend", known(money.usd_per_hour) ? `${usd(money.usd_per_hour)}/h` : NONE);
  const demand = money.on_demand_usd_per_hour;
  const saved = demand ? 1 - money.usd_per_hour / demand : 0;
  put("spend-more", !known(demand) ? "on-demand prices not told"
    : `${usd(demand)}/h all on demand${Math.abs(saved) < 0.005 ? "" : saved > 0 ? `: ${percent(saved)} saved` : `: ${percent(-saved)} more`}`);

  const last = pulses.slice(-SMOOTH);
  put("output", `${rate(mean(last, "output_tokens"))} tok/s`);
  put("ttft", pair(pulses, "ttft_p50_s", "ttft_p95_s"));
  put("itl", pair(pulses, "itl_p50_s", "itl_p95_s"));
  put("requests", `${rate(mean(last, "requests"))}/s`);
  const errors = sum(pulses, "errors");
  const all = sum(pulses, "requests");
  put("errors", `${errors ? count(errors) : "none"} of ${short(all)} failed`);
  by("errors").classList.toggle("bad", errors > 0);
  put("kv", percent(recent(pulses, "kv_used_ratio")));
  const depth = state.queue.reduce((all, row) => all + row.depth, 0);
  put("waiting", count(depth));
  const oldest = Math.max(0, ...state.queue.map((row) => row.oldest_s));
  put("waiting-more", depth ? `the oldest for ${time(oldest)}` : "nobody in the queue");

  spark("output-spark", "output tokens a second", [series(pulses, "output_tokens")], count);
  spark("ttft-spark", "time to the first token", [series(pulses, "ttft_p95_s"), series(pulses, "ttft_p50_s")], time);
  spark("itl-spark", "time between tokens", [series(pulses, "itl_p95_s"), series(pulses, "itl_p50_s")], time);
  spark("kv-spark", "KV cache held", [series(pulses, "kv_used_ratio")], percent, 1);
}

const sum = (pulses, name) => pulses.reduce((all, pulse) => all + (pulse[name] ?? 0), 0);
const mean = (pulses, name) => (pulses.length ? sum(pulses, name) / pulses.length : null);
const series = (pulses, name) => pulses.map((pulse) => pulse[name] ?? null);

function recent(pulses, name) {
  for (let i = pulses.length - 1; i >= Math.max(0, pulses.length - FRESH); i--) if (known(pulses[i][name])) return pulses[i][name];
  return null;
}

function pair(pulses, low, high) {
  const [a, b] = [recent(pulses, low), recent(pulses, high)];
  if (!known(a) && !known(b)) return NONE;
  const [x, y] = [time(a), time(b)];
  const unit = x.split(" ")[1];
  return unit && unit === y.split(" ")[1] ? `${x.split(" ")[0]} / ${y}` : `${x} / ${y}`;
}

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = KEPT, HEIGHT = 28;
const GAP = 10; // seconds of which nothing is known that a line bridges

/** Lines over two minutes, the newest at the right edge; broken where nothing was known for long. The first is drawn lighter. */
function spark(id, what, lines, say, top) {
  const svg = by(id);
  while (svg.childElementCount < lines.length) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", svg.childElementCount === 0 && lines.length > 1 ? "high" : "low");
    svg.append(path);
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
  }
  const values = lines.flat().filter(known);
  const most = top ?? Math.max(...values, 0);
  lines.forEach((line, i) => svg.children[i].setAttribute("d", path(line, most || 1)));
  svg.setAttribute("aria-label", values.length ? `${what}, two minutes: at most ${say(Math.max(...values))}` : `${what}: nothing in two minutes`);
}

function path(line, most) {
  let drawn = "", before = -Infinity;
  line.forEach((value, i) => {
    if (!known(value)) return;
    const x = WIDTH - line.length + i + 0.5, y = HEIGHT - 1.5 - (value / most) * (HEIGHT - 4);
    drawn += `${i - before <= GAP ? "L" : "M"}${x} ${y.toFixed(1)}`;
    if (i - before > GAP) drawn += "h.5"; // seen, also where it is alone
    before = i;
  });
  return drawn;
}

export const keepPulses = (before, told) => [...before, ...told].slice(-KEPT);
