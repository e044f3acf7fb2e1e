// Figures and states in words. Pure; knows nothing of the page.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const cents = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const fine = new Intl.NumberFormat("en-US", { minimumFractionDigits: 4, maximumFractionDigits: 4 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const NONE = "–"; // nobody knows

export const known = (value) => value !== null && value !== undefined;

export const count = (value) => (known(value) ? whole.format(value) : NONE);

export const rate = (value) => (!known(value) ? NONE : value > 0 && value < 10 ? one.format(value) : whole.format(value));

/** Large counts, short: 1,234 · 12.3k · 4.5M. */
export function short(value) {
  if (!known(value)) return NONE;
  if (value < 10_000) return whole.format(value);
  const [scaled, unit] = value < 999_500 ? [value / 1e3, "k"] : [value / 1e6, "M"];
  return `${(scaled < 100 ? one : whole).format(scaled)}${unit}`;
}

export const percent = (ratio) => (known(ratio) ? `${ratio > 0 && ratio < 0.0095 ? "<1" : whole.format(ratio * 100)}%` : NONE);

export function usd(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "$0";
  return `$${(value >= 1000 ? whole : value >= 0.1 ? cents : fine).format(value)}`;
}

/** As people say it. */
export function time(seconds) {
  if (!known(seconds)) return NONE;
  const ms = seconds * 1e3;
  if (ms === 0) return "0 ms";
  if (ms < 1) return `${ms.toPrecision(1)} ms`;
  if (ms < 9.95) return `${one.format(ms)} ms`;
  if (ms < 999.5) return `${whole.format(ms)} ms`;
  return seconds < 99.5 ? `${one.format(seconds)} s` : span(seconds);
}

/** A countdown or an age: 0:42, 12:05, 3 h, 2 d. */
export function span(seconds) {
  const left = Math.max(0, Math.round(seconds));
  if (left < 3600) return `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  return left < 172_800 ? `${one.format(left / 3600)} h` : `${whole.format(left / 86_400)} d`;
}

export const at = (unix_s) => clock.format(new Date(unix_s * 1000));

export const tier = (name) => name.replace("_", " ");

/** Used of a replica's KV cache: held, expected growth and others', in blocks. */
export function kv(card) {
  const blocks = card.kv_blocks;
  if (!blocks) return null;
  const held = Math.min(card.held_blocks, blocks);
  const growth = Math.min(Math.max(card.reserved_blocks - card.held_blocks, 0), blocks - held);
  const foreign = Math.min(card.foreign_blocks, blocks - held - growth);
  const free = blocks - held - growth - foreign;
  return { held: held / blocks, growth: growth / blocks, foreign: foreign / blocks, free: free / blocks,
    used: 1 - free / blocks, freeTokens: known(card.block_size) ? free * card.block_size : null };
}

const STATES = {
  starting: "starting", warming: "warming up", ready: "ready", suspect: "doubted", draining: "draining",
  reclaiming: "being reclaimed", asleep: "asleep", waking: "waking", down: "down",
};

export const lifecycle = (name) => STATES[name] ?? name;

const CIRCUITS = { half_open: "on probation", open: "no new work for now" };

/** What a card says about its state: [glyph, word, more]. The glyph repeats the word for the eye; colour is never alone. */
export function stateOf(card, now_unix_s) {
  const glyphs = { ready: "●", draining: "◐", reclaiming: "◐", suspect: "◌", down: "✕", asleep: "◑", waking: "◔" };
  const said = [];
  const deadline = card.deadline_unix_s;
  if (known(deadline)) said.push(`${span(deadline - now_unix_s)} left`);
  if (card.circuit !== "closed") said.push(CIRCUITS[card.circuit] ?? card.circuit);
  if (card.reason && card.reason !== "drain" && card.reason !== "reclaim") said.push(card.reason);
  if (card.why && !(card.lifecycle === "ready" && card.circuit === "closed")) said.push(card.why);
  return [glyphs[card.lifecycle] ?? "○", lifecycle(card.lifecycle), said.join(" · ")];
}

/** Why a request went where it went; `chosen` is the candidate that was taken. */
export function reason(line) {
  const chosen = line.candidates[0];
  const free = chosen && chosen.usd === 0;
  const paid = free && line.cost_tier === "reserved" ? " (paid for anyway: adds $0)" : "";
  switch (line.reason) {
    case "prefix_hit":
      return chosen?.cached_tokens ? `has ${count(chosen.cached_tokens)} tokens of this prompt cached` : "has the beginning of this prompt cached";
    case "cost":
      return `cheapest that meets the objective${paid}`;
    case "kv_headroom":
      return `as cheap as others, and sooner or with more room${paid}`;
    case "fallback":
      return "none would meet the objective: the earliest first token";
    case "policy":
      return "another router's rule decides here, and gives no reasons";
    default:
      return line.reason;
  }
}
