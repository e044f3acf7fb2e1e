// Reads GET /admin/live for as long as the page is open. fetch, not EventSource: only it can carry the key.
//
// Says what it knows through `on`: event(document), state(name, words), key(refused). Comes back by itself, later each time.

const STALE_MS = 3_000; // events are a second apart
const DEAD_MS = 12_000; // a connection that says nothing for so long is given up
const FIRST_PAUSE_MS = 300;
const LONGEST_PAUSE_MS = 5_000;
const KEY = "penstock.admin_key";

export class Feed {
  constructor(on) {
    this.on = on;
    this.heard = 0; // when, by performance.now()
    this.heardAt = null; // the same for people
    this.pause = FIRST_PAUSE_MS;
    this.open = false;
    this.cut = null; // AbortController of the connection
    this.wake = null; // ends the pause
    this.locked = false; // until there is a key
    setInterval(() => this.look(), 500);
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  /** For every call to /admin. */
  headers() {
    const key = sessionStorage.getItem(KEY);
    return key === null ? {} : { authorization: `Bearer ${key}` };
  }

  /** Tried at once. */
  setKey(key) {
    sessionStorage.setItem(KEY, key);
    this.locked = false;
    this.hurry();
  }

  async run() {
    for (;;) {
      const retry_ms = await this.once();
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, retry_ms);
      });
      this.wake = null;
    }
  }

  hurry() {
    if (!this.locked) this.wake?.();
  }

  /** One connection, to its end; how long to wait before the next, in ms. */
  async once() {
    this.cut = new AbortController();
    let response;
    try {
      response = await fetch("/admin/live", {
        headers: { accept: "text/event-stream", ...this.headers() }, cache: "no-store", signal: this.cut.signal,
      });
    } catch {
      return this.lost("cannot be reached");
    }
    if (response.status === 401) {
      const refused = sessionStorage.getItem(KEY) !== null;
      sessionStorage.removeItem(KEY);
      this.locked = true;
      this.on.key(refused);
      return 3_600_000; // until there is another key
    }
    if (!response.ok) return this.refused(response);
    try {
      await this.read(response.body);
    } catch {
      // as an end: the stream was cut
    }
    this.open = false;
    return this.lost("is gone");
  }

  async read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    this.open = true;
    this.heard = performance.now();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) this.take(part);
    }
  }

  take(text) {
    this.heard = performance.now();
    const data = text.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
    if (!data.length) return; // a comment: the line is alive, the figures are not new
    this.heardAt = new Date();
    this.pause = FIRST_PAUSE_MS;
    this.on.event(JSON.parse(data.join("\n")));
  }

  async refused(response) {
    let why = `answered ${response.status}`;
    try {
      why = (await response.json()).error.message;
    } catch {
      // no words of the gateway's
    }
    this.on.state("refused", why);
    return this.later(LONGEST_PAUSE_MS);
  }

  lost(how) {
    this.on.state("offline", `the gateway ${how}${this.since()}; trying again`);
    return this.later();
  }

  later(pause = this.pause) {
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE_MS);
    return pause * (0.8 + 0.4 * Math.random()); // boards that were cut together do not come back together
  }

  look() {
    if (!this.open) return;
    const silent_ms = performance.now() - this.heard;
    if (silent_ms > DEAD_MS) this.cut.abort();
    else if (silent_ms > STALE_MS) this.on.state("stale", `nothing heard${this.since()}`);
  }

  since() {
    return this.heardAt === null ? "" : ` since ${this.heardAt.toLocaleTimeString("en-GB")}`;
  }
}
