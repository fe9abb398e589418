"use strict";

const at = (id) => document.getElementById(id);
const sides = ["left", "right"];
const keys = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", " ": "tie", s: "skip" };
const clips = new Map(); // number of a pair -> promise of the addresses of its two clips
let state = {};
let seen = null; // when both clips began to play; null while no answer can be given

async function load(pair) {
  return Promise.all(
    sides.map(async (side) => {
      const answer = await fetch(`/clip/${pair}/${side}`);
      if (!answer.ok) throw new Error("A clip cannot be read. Skip this pair.");
      return URL.createObjectURL(await answer.blob());
    }),
  );
}

function wanted(pair) {
  if (!clips.has(pair)) {
    const promise = load(pair);
    promise.catch(() => clips.delete(pair)); // whoever waits for it says why; the next one tries again
    clips.set(pair, promise);
  }
  return clips.get(pair);
}

function forget(kept) {
  for (const [pair, promise] of clips) {
    if (kept.includes(pair)) continue;
    clips.delete(pair);
    promise.then((addresses) => addresses.forEach(URL.revokeObjectURL), () => {});
  }
}

function play() {
  for (const side of sides) {
    at(side).currentTime = 0;
    at(side).play().catch(() => {}); // the next pair may have come
  }
}

// The shorter clip waits for the longer one, so that both always begin together.
for (const side of sides) {
  at(side).addEventListener("ended", () => sides.every((one) => at(one).ended) && play());
}

async function show(next) {
  state = next;
  seen = null;
  const skipped = state.skipped ? `, ${state.skipped} skipped` : "";
  at("count").textContent = `${state.answered} of ${state.total}${skipped}`;
  at("progress").max = state.total;
  at("progress").value = state.answered;
  at("error").textContent = "";
  at("undo").disabled = state.answered === 0;
  at("pair").hidden = "tally" in state;
  at("end").hidden = !at("pair").hidden;
  enable(false);
  if ("tally" in state) return showTally();
  const pair = state.pair;
  at("prompt").textContent = state.prompt || "Which is better?";
  delete at("clips").dataset.chosen;
  forget([pair, ...state.soon]);
  try {
    const addresses = await wanted(pair);
    if (state.pair !== pair) return;
    await Promise.all(
      sides.map((side, i) => {
        const video = at(side);
        return new Promise((done, fail) => {
          video.oncanplaythrough = done;
          video.onerror = () => fail(new Error("A clip cannot be played. Skip this pair."));
          video.src = addresses[i];
        });
      }),
    );
    for (const side of sides) at(side).className = at(side).videoWidth <= 128 ? "pixels" : "";
    play();
    seen = performance.now();
    enable(true);
    for (const later of state.soon) wanted(later).catch(() => {});
  } catch (error) {
    at("error").textContent = error.message;
  }
}

function showTally() {
  at("tally").replaceChildren();
  for (const { models, wins, ties } of state.tally) {
    models.forEach((model, i) => {
      const row = at("tally").insertRow();
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = model;
      const other = document.createElement("small");
      other.textContent = ` against ${models[1 - i]}`;
      name.append(other);
      row.append(name);
      const votes = wins[0] + wins[1] + ties;
      const share = votes ? `${Math.round((100 * (wins[i] + ties / 2)) / votes)}%` : "none";
      for (const text of [wins[i], ties, share]) row.insertCell().textContent = text;
    });
  }
}

function enable(on) {
  at("clips").setAttribute("aria-busy", String(!on));
  for (const button of document.querySelectorAll("[data-choice]")) {
    const skip = button.dataset.choice === "skip";
    button.disabled = !on && !(skip && "pair" in state);
    if (skip) button.hidden = !("pair" in state);
  }
}

async function send(path, body) {
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const found = await answer.json();
    if ("error" in found) at("error").textContent = found.error;
    else await show(found);
  } catch {
    at("error").textContent = "The arena does not answer. Is it still running?";
  }
}

function choose(choice) {
  if (!("pair" in state) || (seen === null && choice !== "skip")) return;
  const seconds = seen === null ? 0 : (performance.now() - seen) / 1000;
  seen = null; // one answer a pair
  at("clips").dataset.chosen = choice;
  send("/vote", { pair: state.pair, choice, seconds });
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.tagName === "BUTTON") return; // it presses the button
  if (event.key in keys) {
    event.preventDefault();
    choose(keys[event.key]);
  } else if (event.key === "u" && state.answered) {
    send("/undo", {});
  }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (event.detail > 0) button.blur(); // or the space bar would press it again
  if (button.id === "undo") send("/undo", {});
  else choose(button.dataset.choice);
});

fetch("/state")
  .then((answer) => answer.json())
  .then(show, () => (at("error").textContent = "The arena does not answer. Is it still running?"));
