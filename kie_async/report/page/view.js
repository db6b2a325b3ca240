"use strict";
// The elements of a row, which are made when it is seen, and what they show.

const SURE = 0.95; // from which on a reading is shown without its confidence
const LABEL = 68; // pixels that the label of a seam needs
const BAR = 3; // pixels of a bar of a waveform, with its gap

let current = null; // the row that the keys are for

/** Make the frame of a row; what is in it is made when it is seen. */
function makeShell(row, index) {
  const { job } = row;
  const title = make("h2", { id: `title-${index}`, tabindex: -1 }, make("bdi", {}, job.title));
  if (stepOf(job)) title.append(" ", make("span", {}, stepOf(job)));
  const about = make("p", { class: "facts" }, ...facts(job).map((fact) => make("span", {}, make("bdi", {}, fact))));
  row.shell = make("article", { class: `job ${isPlayable(row) ? "waiting" : "bare"}`, "aria-labelledby": `title-${index}` }, make("header", {}, title, about));
  const takes = row.lanes.filter(({ take }) => take).length;
  row.shell.style.setProperty("--takes", takes);
  row.shell.style.setProperty("--sources", row.lanes.length - takes);
  row.parts.title = title;
  if (job.error) row.shell.append(make("p", { class: "problem" }, make("bdi", {}, job.error)));
  row.shell.addEventListener("focusin", () => setCurrent(row));
  row.shell.addEventListener("pointerdown", () => setCurrent(row));
  return row.shell;
}

let size = { width: 0, height: 0 }; // of the waveforms of the last row that was seen: to ask for it takes long
const waves = new WeakMap(); // the row of a waveform, which stands for all of the row

const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect: { width, height } } of entries) {
    if (!width) continue; // the row is hidden
    const row = waves.get(target);
    size = row.size = { width, height };
    showSpan(row);
    row.lanes.forEach((lane) => draw(row, lane));
  }
});

const ICONS = '<svg viewBox="0 0 16 16" aria-hidden="true"><path class="start" d="M4 2.2v11.6c0 .6.7 1 1.2.7l9-5.8c.5-.3.5-1 0-1.4l-9-5.8C4.7 1.2 4 1.6 4 2.2z"/><path class="pause" d="M3.5 2h3v12h-3zM9.5 2h3v12h-3z"/></svg>';

function build(row) {
  if (row.isBuilt) return;
  row.isBuilt = true;
  row.shell.classList.remove("waiting");
  if (isPlayable(row)) row.shell.append(makePlayRow(row));
  row.lanes.forEach((lane, index) => row.shell.append(makeLane(row, lane, index)));
  if (isPlayable(row)) {
    row.shell.append(makeAxis(row));
    row.position = Math.max(0, beginning(row, row.lanes[row.lane]));
    row.size = size;
    const { wave } = row.lanes.find((lane) => lane.wave);
    waves.set(wave, row);
    sizes.observe(wave);
    showLane(row);
    showSpan(row);
    show(row);
  }
}

function makePlayRow(row) {
  const { parts, job: { seams } } = row;
  parts.play = make("button", { type: "button", class: "play", "aria-label": `Play ${row.name}` });
  parts.play.innerHTML = ICONS;
  parts.play.addEventListener("click", () => toggle(row));
  parts.clock = make("span", { class: "clock" });
  parts.seam = make("button", { type: "button", class: "to-seam" }, seams.length > 1 ? "Next seam" : "To the seam");
  parts.seam.addEventListener("click", () => toSeam(row));
  parts.loop = make("button", { type: "button", class: "loop", "aria-pressed": "false", "aria-label": `Loop round ${seams.length > 1 ? "a" : "the"} seam` }, "Loop");
  parts.loop.addEventListener("click", () => loop(row));
  parts.seam.hidden = parts.loop.hidden = !seams.length;
  return make("div", { class: "play-row" }, parts.play, parts.clock, parts.seam, parts.loop);
}

function makeLane(row, lane, index) {
  lane.pick = make("button", { type: "button", class: "pick", "aria-pressed": "false" }, make("b", {}, lane.label), make("span", {}));
  lane.pick.addEventListener("click", () => choose(row, index));
  lane.element = make("div", { class: "lane" }, lane.pick);
  if (!lane.address) {
    lane.pick.disabled = true;
    lane.element.append(make("p", { class: "gone" }, make("bdi", {}, `${lane.name} is missing`)));
    return lane.element;
  }
  lane.bytes = Uint8Array.from(atob(lane.peaks), (character) => character.charCodeAt(0));
  lane.peak = Math.max(0, ...lane.bytes);
  lane.canvas = make("canvas", { "aria-hidden": "true" });
  lane.head = make("i", { class: "head" });
  lane.marks = row.job.seams.map(() => make("i", { class: "seam" }));
  lane.audio = make("audio", { preload: "none" });
  lane.wave = make("div", { class: "wave" }, lane.canvas, ...lane.marks, lane.head, lane.audio);
  lane.wave.addEventListener("click", (event) => {
    const box = lane.wave.getBoundingClientRect();
    const [from, to] = span(row);
    const position = from + (to - from) * (event.clientX - box.left) / box.width;
    choose(row, index, position);
    jump(row, position);
    play(row);
  });
  listen(row, lane);
  lane.element.append(lane.wave);
  if (lane.take) lane.element.append(makeChoice(row, lane), makeNote(row, lane));
  return lane.element;
}

function describe(row, lane) {
  const readings = { whole: "whole song", continuation: "continuation", unclear: "unclear" };
  const reading = readings[lane.reading] ?? "";
  const sure = reading && lane.confidence !== null && lane.confidence < SURE ? ` · ${Math.round(100 * lane.confidence)}\u00a0%` : "";
  const next = continuedIn(row.job, lane);
  return [
    next ? `goes on in step ${next.step}` : "",
    lane.take && lane.title !== row.job.title ? lane.title : "",
    lane.seconds ? exact(lane.seconds) : "",
    reading + sure,
    lane.address && !lane.bytes.length ? "no waveform" : "",
  ].filter(Boolean);
}

function makeChoice(row, lane) {
  const buttons = [["keep", "Keep"], ["drop", "Drop"]].map(([verdict, text]) => {
    const button = make("button", { type: "button", "data-verdict": verdict, "aria-pressed": "false" }, text);
    button.addEventListener("click", () => decide(lane, verdict));
    return button;
  });
  lane.choice = buttons;
  showVerdict(lane);
  return make("div", { class: "choice", role: "group", "aria-label": `Verdict on ${lane.label} of ${row.name}` }, ...buttons);
}

function makeNote(row, lane) {
  lane.note = make("input", { class: "note", type: "text", placeholder: "Note", "aria-label": `Note on ${lane.label} of ${row.name}`, autocomplete: "off" });
  lane.note.value = verdictOf(lane.name).note;
  lane.note.addEventListener("input", () => {
    verdictOf(lane.name).note = lane.note.value;
    store(lane.name);
  });
  return lane.note;
}

function makeAxis(row) {
  const { parts } = row;
  parts.slider = make("input", { type: "range", step: "0.01", "aria-label": `Position in ${row.name}` });
  parts.slider.addEventListener("input", () => jump(row, Number(parts.slider.value)));
  parts.from = make("span", { class: "from" });
  parts.cuts = row.job.seams.map(() => make("span", { class: "cut" }));
  parts.to = make("span", { class: "to" });
  return make("div", { class: "axis" }, make("div", {}, parts.slider, parts.from, ...parts.cuts, parts.to));
}

// ---------------------------------------------------------------- what is shown

function setCurrent(row) {
  if (current === row) return;
  current?.shell.classList.remove("current");
  current = row;
  row.shell.classList.add("current");
}

function showVerdict(lane) {
  const { verdict } = verdictOf(lane.name);
  lane.choice.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict)));
  lane.element.classList.toggle("drop", verdict === "drop");
}

function decide(lane, verdict) {
  const value = verdictOf(lane.name);
  value.verdict = value.verdict === verdict ? null : verdict;
  showVerdict(lane);
  store(lane.name);
  say(`${lane.label}: ${{ keep: "kept", drop: "dropped" }[value.verdict] ?? "undecided"}`);
}

function showLane(row) {
  row.lanes.forEach((lane, index) => {
    lane.pick.setAttribute("aria-pressed", String(index === row.lane));
    const lines = describe(row, lane).map((line) => make("small", {}, make("bdi", {}, line)));
    if (lane.song) lines.unshift(make("small", { class: "song" }, "your song"));
    lane.pick.lastChild.replaceChildren(...lines);
  });
}

/** Place what stands on the time line, which may change when a length becomes known, and with the width of the page. */
function showSpan(row) {
  const { parts, job } = row;
  const [from, to] = span(row);
  [parts.slider.min, parts.slider.max] = [from, to];
  [parts.from.textContent, parts.to.textContent] = [clock(from), clock(to)];
  const room = LABEL / row.size.width; // none while that is not known
  let labelled = 0; // up to where there are labels
  job.seams.forEach((seam, index) => {
    const at = share(row, seam);
    const isFree = at > labelled + room && at < 1 - room;
    if (isFree) labelled = at;
    parts.cuts[index].textContent = isFree ? `${job.cut === null ? "" : "cut "}${exact(seam)}` : "";
    parts.cuts[index].style.left = `${100 * at}%`;
    row.lanes.forEach((lane) => { if (lane.marks) lane.marks[index].style.left = `${100 * at}%`; });
  });
}

/** Show the position of a row. */
function show(row) {
  const { parts } = row;
  const lane = row.lanes[row.lane];
  const [now, end] = [row.position, lane.seconds ? ending(lane) : span(row)[1]].map((seconds) => clock(seconds, 1));
  parts.clock.replaceChildren(make("b", {}, now), ` / ${end}`);
  row.second = Math.floor(row.position);
  parts.slider.value = row.position;
  parts.slider.setAttribute("aria-valuetext", `${now} of ${end}, ${lane.label}`);
  const left = `${100 * share(row, row.position)}%`;
  row.lanes.forEach((lane) => { if (lane.head) lane.head.style.left = left; });
  row.lanes.forEach((lane) => draw(row, lane));
}

const styles = getComputedStyle(document.documentElement); // it follows the theme

const colour = (name) => styles.getPropertyValue(`--${name}`);

/** Draw a waveform, as loud as it is played: what is played in the accent, what is new darker than what was there. */
function draw(row, lane) {
  const { width, height } = row.size;
  if (!width || !lane.wave) return;
  const [from, to] = span(row);
  const bars = Math.floor(width / BAR);
  const played = row === active && row.lanes[row.lane] === lane ? Math.round(share(row, row.position) * width / BAR) : 0;
  const state = [width, height, devicePixelRatio, from, to, played, match.checked, colour("new")].join();
  if (lane.drawn === state) return;
  lane.drawn = state;
  const scale = devicePixelRatio;
  [lane.canvas.width, lane.canvas.height] = [width * scale, height * scale];
  const pen = lane.canvas.getContext("2d");
  pen.scale(scale, scale);
  const loudest = Math.max(1, ...row.lanes.map((each) => (each.peak ?? 0) * volumeOf(row, each)));
  for (let bar = 0; bar < bars; bar++) {
    const position = from + (to - from) * bar / bars;
    const heard = laneAt(row, lane, position);
    const { bytes, start, seconds } = heard;
    const [begin, end] = [position - start, position - start + (to - from) / bars];
    if (end <= 0 || begin >= seconds) continue;
    const perSecond = bytes.length / (seconds || 1);
    let level = 0;
    const last = Math.min(bytes.length - 1, Math.floor(end * perSecond));
    for (let at = Math.max(0, Math.floor(begin * perSecond)); at <= last; at++) level = Math.max(level, bytes[at]);
    const isAfterCut = position >= row.job.seams[0];
    const rest = isAfterCut ? (lane.take ? "new" : "faint") : "wave";
    pen.fillStyle = colour(bar < played ? "accent" : rest);
    const tall = Math.max(2, Math.round(height * level * volumeOf(row, heard) / loudest));
    pen.beginPath();
    pen.roundRect(bar * BAR, (height - tall) / 2, BAR - 1, tall, 1);
    pen.fill();
  }
}

function drawAll() {
  rows.filter((row) => row.isBuilt).forEach((row) => row.lanes.forEach((lane) => draw(row, lane)));
}
