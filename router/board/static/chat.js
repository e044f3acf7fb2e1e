// A chat through the gateway, which says where its tokens came from. What a model says is text, whatever it looks like.

import { setText } from "./figures.js";
import { make } from "./fleet.js";
import { badge } from "./lists.js";
import { count, reason, time } from "./words.js";

const MARKS = 4; // underlines that differ; a fifth replica in one answer looks like the first
const LONGEST = 40; // messages sent along
const KEY = "penstock.api_key"; // kept in this tab until it is closed

function keyHeaders() {
  const key = sessionStorage.getItem(KEY) ?? sessionStorage.getItem("penstock.admin_key"); // one key may have both scopes
  return key ? { authorization: `Bearer ${key}` } : {};
}

export class Chat {
  constructor(ask, clock) {
    this.ask = ask; // (path) -> document of the admin API
    this.clock = clock; // the server's time, in Unix seconds
    this.messages = [];
    this.running = null; // the answer under way
    this.answers = []; // the last ones: where they came from may be told after their end
    this.by = (id) => document.getElementById(id);
    this.by("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.by("say").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.by("api-key").addEventListener("change", () => {
      const key = this.by("api-key").value.trim();
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    });
    this.by("stop").addEventListener("click", () => this.stop());
    this.by("forget").addEventListener("click", () => this.forget());
  }

  /** Models of the fleet, for the picker. */
  paint(state) {
    const models = [...new Set([...state.cards.values()].flatMap((card) => card.models))].sort();
    const picker = this.by("model");
    if ([...picker.options].map((option) => option.value).join("\n") === models.join("\n")) return;
    const chosen = picker.value;
    picker.replaceChildren(...models.map((model) => new Option(model, model)));
    if (models.includes(chosen)) picker.value = chosen;
  }

  /** New lines of the feed, the newest first: an answer that is placed again goes on elsewhere from then on. */
  placed(lines) {
    for (const line of [...lines].reverse()) for (const answer of this.answers) if (line.request_id === answer.id) answer.moved(line);
  }

  stop() {
    this.running?.cut.abort();
  }

  forget() {
    this.stop();
    this.messages = [];
    this.by("talk").replaceChildren();
    this.by("forget").hidden = true;
    this.by("say").focus();
  }

  async send() {
    const said = this.by("say").value.trim();
    if (!said || this.running) return;
    const mine = make("li", "mine", said);
    const answer = new Answer(this.by("model").value, this.clock);
    this.by("talk").append(mine, answer.node);
    this.by("forget").hidden = false;
    this.by("say").value = "";
    this.answers = [...this.answers.slice(-3), answer];
    this.busy(answer);
    const messages = this.messages;
    messages.push({ role: "user", content: said });
    try {
      await answer.stream(messages.slice(-LONGEST), Number(this.by("tokens").value) || null);
    } finally {
      if (this.messages === messages) {
        if (answer.text) messages.push({ role: "assistant", content: answer.text });
        else messages.pop(); // it was not answered: said again, it is a new question
      }
      if (answer.failed && !this.by("say").value) this.by("say").value = said;
      this.busy(null);
    }
    if (answer.id) await answer.explain(this.ask);
  }

  busy(answer) {
    this.running = answer;
    this.by("send").hidden = answer !== null;
    this.by("stop").hidden = answer === null;
  }
}

class Answer {
  constructor(model, clock) {
    this.model = model;
    this.clock = clock;
    this.cut = new AbortController();
    this.id = null;
    this.text = "";
    this.failed = false;
    this.parts = []; // {text, unix_s}: as they came, until they are drawn for good
    this.homes = []; // {replica, tier, from_unix_s}
    this.headers_unix_s = Infinity;
    this.drawing = false;
    this.node = make("li", "theirs");
    this.body = make("p", "text");
    this.from = make("p", "from");
    this.why = make("p", "quiet why");
    this.from.append(make("span", "quiet", "waiting for a place"));
    this.node.append(this.body, this.from, this.why);
  }

  async stream(messages, most) {
    const asked = performance.now();
    const body = { model: this.model, messages, stream: true, stream_options: { include_usage: true } };
    if (most) body.max_tokens = most;
    try {
      const response = await fetch("/v1/chat/completions", {
        method: "POST", headers: { "content-type": "application/json", ...keyHeaders() }, body: JSON.stringify(body), signal: this.cut.signal,
      });
      this.id = response.headers.get("x-request-id");
      if (!response.ok) {
        if (response.status === 401 || response.status === 403) document.getElementById("api-key-row").hidden = false;
        this.fail(await errorOf(response));
        return;
      }
      this.headers_unix_s = this.clock();
      this.queued_s = Number(response.headers.get("x-penstock-queue-ms")) / 1e3;
      this.homes.push({ replica: response.headers.get("x-penstock-replica") ?? "the gateway", tier: response.headers.get("x-penstock-cost-tier") ?? "", from_unix_s: 0 });
      await this.read(response.body, asked);
    } catch (error) {
      if (this.cut.signal.aborted) this.stopped = true;
      else this.fail({ message: `The connection broke: ${error.message}` });
    }
    this.draw();
    this.tell();
  }

  async read(stream, asked) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", done = false;
    for (;;) {
      const { value, done: over } = await reader.read();
      if (over) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") done = true;
        else this.take(JSON.parse(data), asked);
      }
    }
    if (!done && !this.failed) this.fail({ message: "The stream ended before its end." });
  }

  take(chunk, asked) {
    if (chunk.error) {
      this.fail(chunk.error);
      return;
    }
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices?.[0];
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    const text = choice?.delta?.content;
    if (!text) return;
    const now = performance.now();
    this.ttft_s ??= (now - asked) / 1e3;
    this.first ??= now;
    this.last = now;
    this.deltas = (this.deltas ?? 0) + 1;
    this.text += text;
    this.parts.push({ text, unix_s: this.clock() });
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.draw();
      this.tell();
    });
  }

  /** It was placed a second time; before its head came, that was an attempt that nobody saw. */
  moved(line) {
    const here = this.homes.at(-1);
    if (line.unix_s < this.headers_unix_s || here === undefined || here.replica === line.replica) return;
    this.homes.push({ replica: line.replica, tier: line.cost_tier, from_unix_s: line.unix_s });
    this.body.replaceChildren(); // from then on its tokens are another's, also those drawn meanwhile
    this.drawn = 0;
    this.draw();
    this.tell();
  }

  draw() {
    for (const part of this.parts.slice(this.drawn ?? 0)) {
      const home = this.homes.findLastIndex((one) => one.from_unix_s <= part.unix_s);
      let run = this.body.lastElementChild;
      if (Number(run?.dataset.home ?? -1) !== home) {
        run = make("span", `mark-${home % MARKS}`);
        run.dataset.home = String(home);
        if (home > 0) run.title = `from here on by ${this.homes[home].replica}`;
        run.append("");
        this.body.append(run);
      }
      run.firstChild.appendData(part.text);
    }
    this.drawn = this.parts.length;
    this.node.classList.toggle("several", this.homes.length > 1);
    const talk = this.node.parentElement;
    if (talk && talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80) talk.scrollTop = talk.scrollHeight;
  }

  /** Where its tokens come from, and how fast. */
  tell() {
    if (!this.homes.length) {
      if (this.stopped) setText(this.from, "stopped before it had a place");
      return;
    }
    const found = [];
    this.homes.forEach((home, i) => {
      if (i) found.push(make("span", "quiet", "then"));
      found.push(make("b", `mark-${i % MARKS}`, home.replica));
      if (home.tier) found.push(badge(home.tier));
    });
    const words = [`queued ${time(this.queued_s)}`];
    if (this.ttft_s !== undefined) words.push(`first token ${time(this.ttft_s)}`);
    const tokens = this.tokens ?? this.deltas ?? 0;
    const took_s = (this.last - this.first) / 1e3;
    if (tokens > 1 && took_s > 0) words.push(`${count((tokens - 1) / took_s)} tok/s`);
    if (tokens) words.push(`${count(tokens)} tokens`);
    if (this.finish === "length") words.push("cut at the bound");
    if (this.stopped) words.push("stopped, and so was the engine");
    found.push(make("span", "quiet", words.join(" · ")));
    this.from.replaceChildren(...found);
  }

  /** Why it went there, from the decision itself. */
  async explain(ask) {
    if (!this.homes.length) return; // it went nowhere
    try {
      const found = await ask(`/admin/decisions/${encodeURIComponent(this.id)}`);
      const { choice } = found;
      const line = { reason: choice.reason, cost_tier: choice.cost_tier, candidates: [choice.score] };
      const again = found.earlier ? ` · placed ${count(found.earlier + 1)} times` : "";
      setText(this.why, `${choice.replica}: ${reason(line)} · ${count(choice.considered)} had room${again}`);
    } catch {
      // never placed, or no decisions are kept: nothing to add
    }
  }

  fail(error) {
    this.failed = true;
    if (!this.homes.length) this.from.replaceChildren();
    const box = make("p", "failure");
    box.setAttribute("role", "alert");
    box.append(make("b", "", error.code ? `${error.code.replaceAll("_", " ")}: ` : ""), error.message ?? "no words with it");
    if (error.retry_s) box.append(` Try again in ${time(error.retry_s)}.`);
    this.node.append(box);
  }
}

async function errorOf(response) {
  const retry_s = Number(response.headers.get("retry-after-ms")) / 1e3 || Number(response.headers.get("retry-after")) || null;
  try {
    return { ...(await response.json()).error, retry_s };
  } catch {
    return { message: `The gateway answered ${response.status}.`, retry_s };
  }
}
