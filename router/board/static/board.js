// Puts the page together: the feed's documents become one state, and the state is painted, at most once a frame.

import { Chat } from "./chat.js";
import { Feed } from "./feed.js";
import { keepPulses, marks, paintAnswers, paintFigures, setText } from "./figures.js";
import { Fleet } from "./fleet.js";
import { Placements, keepPlacements, paintQueue } from "./lists.js";
import { span } from "./words.js";

const VERSION = 1; // of the feed's document

const by = (id) => document.getElementById(id);

const state = {
  cards: new Map(), queue: [], pulses: [], placements: [], money: {},
  live: null, // the last document's own fields
  ahead_s: -Infinity, // of the server's clock, to this one's
  now: () => Date.now() / 1e3 + state.ahead_s,
};
let changed = false; // replicas came, went or, in a whole document, may have
let painting = false;

/** Of the admin API; rejects with words for people. */
async function ask(path) {
  const response = await fetch(path, { headers: feed.headers(), cache: "no-store" });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error?.message ?? `answered ${response.status}`);
  return found;
}

function event(live) {
  if (live.version !== VERSION) {
    tell("refused", "this page is of another release than the gateway: load it again");
    return;
  }
  if (live.whole) {
    changed = true;
    state.cards = new Map();
    state.pulses = [];
    state.placements = [];
  }
  for (const card of live.replicas) {
    changed ||= !state.cards.has(card.name);
    state.cards.set(card.name, card);
  }
  for (const name of live.gone) changed = state.cards.delete(name) || changed;
  state.queue = live.queue;
  state.pulses = keepPulses(state.pulses, live.pulses);
  state.placements = keepPlacements(state.placements, live.placements);
  state.money = live.money;
  state.live = live;
  setClock(live.unix_s - Date.now() / 1e3);
  chat.placed(live.placements);
  document.body.classList.remove("waiting");
  by("key-form").hidden = true;
  if (live.draining) tell("draining", "the gateway drains: running answers end, new requests are sent away");
  else tell("live", "live");
  soon();
}

/** The server's clock by ours. A document that came late says too little, so the most that was said counts, and fades. */
function setClock(ahead_s) {
  const off_s = Math.abs(ahead_s - state.ahead_s);
  state.ahead_s = off_s > 30 ? ahead_s : Math.max(ahead_s, state.ahead_s - 0.02);
}

function soon() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    paint();
  });
}

function paint() {
  const found = marks(state);
  const { live } = state;
  const workers = live.workers > 1 ? ` · ${live.workers} workers` : "";
  setText(by("release"), `${live.penstock} · up ${span(live.unix_s - live.started_unix_s)}${workers}`);
  paintAnswers(state, found);
  paintFigures(state);
  fleet.paint(state, found, changed);
  changed = false;
  placements.paint(state);
  paintQueue(state);
  chat.paint(state);
}

/** The state of the connection: connecting, live, stale, offline, refused, draining, locked. */
function tell(name, words) {
  by("state").dataset.state = name;
  document.body.dataset.state = name;
  setText(by("state-words"), name === "live" ? "live" : { stale: "stale", offline: "offline", refused: "refused", draining: "draining", locked: "locked" }[name] ?? name);
  const loud = name !== "live" && name !== "locked";
  by("notice").hidden = !loud;
  setText(by("notice"), loud ? words.charAt(0).toUpperCase() + words.slice(1) + "." : "");
}

function askForKey(refused) {
  tell("locked", "");
  by("key-form").hidden = false;
  by("key").value = "";
  by("key").setAttribute("aria-invalid", String(refused));
  setText(by("key-words"), refused ? "That is not the key (server.admin_key)." : "Kept in this tab until it is closed, and sent nowhere else.");
  by("key").focus();
}

by("key-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  feed.setKey(by("key").value.trim());
});

addEventListener("keydown", (pressed) => {
  const typing = pressed.target.closest?.("input, textarea, select");
  if (pressed.key === "/" && !typing && !pressed.ctrlKey && !pressed.metaKey && !pressed.altKey) {
    pressed.preventDefault();
    by("filter").focus();
    by("filter").select();
  } else if (pressed.key === "Escape") {
    if (pressed.target === by("filter")) {
      by("filter").value = "";
      by("filter").dispatchEvent(new Event("input"));
      by("filter").blur();
    } else if (chat.running) chat.stop();
  }
});

const feed = new Feed({ event, state: tell, key: askForKey });
const fleet = new Fleet();
const placements = new Placements(ask);
const chat = new Chat(ask, state.now);
feed.run();
