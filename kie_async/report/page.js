
"use strict";
(() => {
  const ROUND = 3; // seconds before and after the seam that are looped
  const STEP = 5; // seconds of an arrow key
  const QUIETEST = 0.25; // the lowest volume that matches levels, of a lane that is 12 dB louder than another
  const BAR = 3; // pixels of a bar of a waveform, with its gap

  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const main = find("jobs");
  const match = find("match"); // the switch
  let current = null; // the row that the keys are for
  let active = null; // the row whose audio is loaded
  let saying = 0; // the timer of what is about to be said

  /** Make an element: its attributes, and its children, which are elements or text. */
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  /** A position or a length, to so many decimal places. */
  function clock(seconds, places = 0) {
    const scale = 10 ** places;
    const units = Math.max(0, Math.round(scale * seconds));
    const whole = Math.floor(units / scale);
    const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
    const rest = String(whole % 60).padStart(2, "0") + (places ? `.${String(units % scale).padStart(places, "0")}` : "");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  }

  const exact = (seconds) => clock(seconds, 2).replace(".00", ""); // as the commands write it: 2:06, or 0:15.40

  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  /** Have a screen reader say a text; one that nothing else on the page shows is seen, too. */
  function say(text, { isShown = false } = {}) {
    const live = find("live");
    live.textContent = "";
    live.className = isShown ? "shown" : "sr";
    clearTimeout(saying);
    saying = setTimeout(() => { live.textContent = text; }, 20); // said again though it is the same
  }

  const warn = (text) => say(text, { isShown: true });

  // ---------------------------------------------------------------- verdicts, kept in the browser by folder

  const here = new URL(".", location.href);
  const prefix = `kie-async report ${here.href} `;
  const verdicts = new Map(); // by file: {verdict, note}
  let isKept = true;

  function verdictOf(name) {
    if (!verdicts.has(name)) {
      let value = null;
      try {
        value = JSON.parse(localStorage.getItem(prefix + name));
      } catch { /* no storage, or not ours */ }
      const verdict = ["keep", "drop"].includes(value?.verdict) ? value.verdict : null;
      verdicts.set(name, { verdict, note: typeof value?.note === "string" ? value.note : "" });
    }
    return verdicts.get(name);
  }

  function store(name) {
    const value = verdictOf(name);
    try {
      if (value.verdict || value.note) localStorage.setItem(prefix + name, JSON.stringify(value));
      else localStorage.removeItem(prefix + name);
    } catch {
      if (isKept) warn("This browser keeps nothing for this page: download the verdicts before you close it.");
      isKept = false;
    }
    showProgress();
  }

  const takes = data.jobs.flatMap((job) => job.lanes.filter((lane) => lane.take && lane.address).map((lane) => [job, lane]));

  function showProgress() {
    const decided = takes.filter(([, lane]) => verdictOf(lane.name).verdict).length;
    find("progress").textContent = `${decided} of ${takes.length} decided${isKept ? "" : ", not stored"}`;
    document.documentElement.style.setProperty("--done", `${takes.length ? 100 * decided / takes.length : 0}%`);
  }

  /** The folder on the disk, where the page was opened from there. */
  function directory() {
    if (here.protocol !== "file:") return null;
    try {
      const path = decodeURIComponent(here.pathname);
      return /^\/[A-Za-z]:/.test(path) ? path.slice(1) : path;
    } catch {
      return null; // a name that is not UTF-8
    }
  }

  function exported() {
    return {
      format: 1,
      report: "kie-async",
      folder: data.folder,
      directory: directory(),
      exported_at: new Date().toISOString(),
      takes: takes.map(([job, lane]) => ({
        job: job.key, title: job.title, take: lane.take, track: lane.track, file: lane.name, ...verdictOf(lane.name),
      })),
    };
  }

  function download() {
    const text = JSON.stringify(exported(), null, 2);
    let address;
    try {
      address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    } catch {
      address = `data:application/json,${encodeURIComponent(text)}`;
    }
    const link = make("a", { href: address, download: "verdicts.json" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    warn("Verdicts downloaded as verdicts.json");
  }

  /** Leave a switch as it was at the last visit, to any report. */
  function remember(id) {
    const key = `kie-async report: ${id}`; // that of a file has a space before the address
    try {
      find(id).checked = localStorage.getItem(key) !== "off";
    } catch { /* no storage */ }
    find(id).addEventListener("change", ({ target }) => {
      try {
        localStorage.setItem(key, target.checked ? "on" : "off");
      } catch { /* no storage */ }
    });
  }

  /** Say why levels are not matched where they cannot be. */
  function offerMatching() {
    const probe = make("audio");
    probe.volume = 0.5;
    const isKnown = data.jobs.some(({ lanes }) => lanes.some(({ gain }) => gain !== null));
    if (isKnown && probe.volume < 1) return;
    match.checked = false;
    const reason = isKnown ? "this device plays all at one volume" : "they could not be measured";
    match.closest("p").replaceChildren(make("span", {}, `Levels are not matched: ${reason}`));
  }

  // ---------------------------------------------------------------- rows

  function laneLabel(job, lane) {
    if (!lane.take) return "Source";
    return job.step ? `Take ${lane.take}` : "Song"; // the finished song of a chain is no take
  }

  const rows = data.jobs.map((job) => ({
    job,
    lanes: job.lanes.map((lane) => ({ ...lane, label: laneLabel(job, lane) })),
    lane: Math.max(0, job.lanes.findIndex((lane) => lane.take && lane.address)),
    take: Math.max(0, job.lanes.findIndex((lane) => lane.take && lane.address)), // chosen last, of the takes
    heard: null, // the lane whose player is the one that plays
    position: 0,
    isLooped: false,
    isBuilt: false,
    parts: {},
  }));

  const isPlayable = (row) => row.lanes.some((lane) => lane.address);

  /** Whether a lane is the continuation alone, of a source that is here: the source is heard up to the cut. */
  function isContinued(row, lane) {
    return lane.take > 0 && lane.reading === "continuation" && row.job.cut !== null && !row.lanes[0].take;
  }

  /** The lane that is heard at a position when a lane is chosen. */
  function laneAt(row, lane, position) {
    return isContinued(row, lane) && position < row.job.cut ? row.lanes[0] : lane;
  }

  function span(row) {
    const from = Math.min(0, ...row.lanes.map((lane) => lane.start));
    const to = Math.max(from + 1, ...row.lanes.map((lane) => lane.start + lane.seconds));
    return [from, to];
  }

  /** A position on the time line of a row, from 0 to 1. */
  function share(row, position) {
    const [from, to] = span(row);
    return Math.min(1, Math.max(0, (position - from) / (to - from)));
  }

  /** What was extended, unless the title says so. */
  function origin({ source, title, step }) {
    const before = step > 1 ? data.jobs.filter((job) => job.step === step - 1) : [];
    const made = before.flatMap((job) => job.lanes).find((lane) => lane.take && lane.name === source);
    if (made) return `from take ${made.take} of step ${step - 1}`;
    return source.replace(/\.[^.]*$/, "") === title ? "" : source;
  }

  function facts(job) {
    return [
      job.state === "delivered" ? "" : job.state,
      job.step === 0 ? "finished song" : "",
      job.step > 1 ? `step ${job.step}` : "",
      origin(job),
      job.source && job.lanes.every((lane) => lane.take) ? "its source is not here" : "",
      job.cut === null ? "" : `cut at ${exact(job.cut)}`,
      job.model,
    ].filter(Boolean);
  }

  /** Make the frame of a row; what is in it is made when it is seen. */
  function makeShell(row, index) {
    const { job } = row;
    const title = make("h2", { id: `title-${index}`, tabindex: -1 }, make("bdi", {}, job.title));
    const about = make("p", { class: "facts" }, ...facts(job).map((fact) => make("span", {}, make("bdi", {}, fact))));
    row.shell = make("article", { class: "job waiting", "aria-labelledby": `title-${index}` }, make("header", {}, title, about));
    row.shell.style.setProperty("--lanes", row.lanes.length);
    row.parts.title = title;
    if (job.error) row.shell.append(make("p", { class: "problem" }, make("bdi", {}, job.error)));
    row.shell.addEventListener("focusin", () => setCurrent(row));
    row.shell.addEventListener("pointerdown", () => setCurrent(row));
    return row.shell;
  }

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
      row.lanes.forEach((lane) => { if (lane.wave) sizes.observe(lane.wave); });
      showLane(row);
      showSpan(row);
      show(row);
    }
  }

  function makePlayRow(row) {
    const { parts, job } = row;
    const isCut = job.cut !== null;
    parts.play = make("button", { type: "button", class: "play", "aria-label": `Play ${job.title}` });
    parts.play.innerHTML = ICONS;
    parts.play.addEventListener("click", () => toggle(row));
    parts.clock = make("span", { class: "clock" });
    parts.seam = make("button", { type: "button", class: "to-seam" }, "To the seam");
    parts.seam.addEventListener("click", () => toSeam(row));
    parts.loop = make("button", { type: "button", class: "loop", "aria-pressed": "false", "aria-label": "Loop round the seam" }, "Loop");
    parts.loop.addEventListener("click", () => loop(row));
    parts.seam.disabled = parts.loop.disabled = !isCut;
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
    lane.mark = make("i", { class: "seam" });
    lane.mark.hidden = row.job.cut === null;
    lane.audio = make("audio", { preload: "none" });
    lane.wave = make("div", { class: "wave" }, lane.canvas, lane.mark, lane.head, lane.audio);
    lane.wave.addEventListener("click", (event) => {
      const box = lane.wave.getBoundingClientRect();
      const [from, to] = span(row);
      const position = from + (to - from) * (event.clientX - box.left) / box.width;
      choose(row, index, position);
      seek(row, position);
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
    const sure = reading && lane.confidence !== null ? ` · ${Math.round(100 * lane.confidence)}\u00a0%` : "";
    return [
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
    return make("div", { class: "choice", role: "group", "aria-label": `Verdict on ${lane.label} of ${row.job.title}` }, ...buttons);
  }

  function makeNote(row, lane) {
    lane.note = make("input", { class: "note", type: "text", placeholder: "Note", "aria-label": `Note on ${lane.label} of ${row.job.title}`, autocomplete: "off" });
    lane.note.value = verdictOf(lane.name).note;
    lane.note.addEventListener("input", () => {
      verdictOf(lane.name).note = lane.note.value;
      store(lane.name);
    });
    return lane.note;
  }

  function makeAxis(row) {
    const { parts } = row;
    parts.slider = make("input", { type: "range", step: "0.01", "aria-label": `Position in ${row.job.title}` });
    parts.slider.addEventListener("input", () => seek(row, Number(parts.slider.value)));
    parts.from = make("span", { class: "from" });
    parts.cut = make("span", { class: "cut" });
    parts.to = make("span", { class: "to" });
    return make("div", { class: "axis" }, make("div", {}, parts.slider, parts.from, parts.cut, parts.to));
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
      lane.pick.lastChild.replaceChildren(...describe(row, lane).map((line) => make("small", {}, make("bdi", {}, line))));
    });
  }

  /** Place what stands on the time line, which may change when a length becomes known. */
  function showSpan(row) {
    const { parts, job } = row;
    const [from, to] = span(row);
    [parts.slider.min, parts.slider.max] = [from, to];
    [parts.from.textContent, parts.to.textContent] = [clock(from), clock(to)];
    if (job.cut === null) return;
    const at = share(row, job.cut);
    parts.cut.textContent = at > 0.1 && at < 0.9 ? `cut ${exact(job.cut)}` : "";
    parts.cut.style.left = `${100 * at}%`;
    row.lanes.forEach((lane) => { if (lane.mark) lane.mark.style.left = `${100 * at}%`; });
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

  let colours = null;

  function colour(name) {
    colours ??= getComputedStyle(document.documentElement);
    return colours.getPropertyValue(`--${name}`);
  }

  /** Draw a waveform, as loud as it is played: what is played in the accent, what is new darker than what was there. */
  function draw(row, lane) {
    const [width, height] = [lane.wave?.clientWidth, lane.wave?.clientHeight];
    if (!width) return;
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
      const isAfterCut = row.job.cut !== null && position >= row.job.cut;
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

  // ---------------------------------------------------------------- playing

  let nextFrame = 0;
  const playing = (row) => row === active && !row.heard.audio.paused;
  const beginning = (row, lane) => (isContinued(row, lane) ? row.lanes[0].start : lane.start);
  const ending = (lane) => (lane.seconds ? lane.start + lane.seconds : Infinity); // until its length is known

  /** Just before the seam; of a lane that has none, its last seconds, or its beginning if nothing is known. */
  function beforeSeam(row, lane) {
    const { cut } = row.job;
    return cut === null ? lane.start : Math.max(beginning(row, lane), Math.min(cut, ending(lane)) - ROUND);
  }

  /** Go to just before the seam if the lane has nothing at the position, and say so. */
  function enter(row) {
    const [lane, { position }] = [row.lanes[row.lane], row];
    if (position > beginning(row, lane) - 0.05 && position < ending(lane) - 0.05) return;
    row.position = beforeSeam(row, lane);
    warn(`${lane.label} has nothing at ${exact(position)}: from ${exact(row.position)}`);
  }

  /** Load the audio of a row, and let go that of another. */
  function activate(row) {
    if (active === row) return;
    if (active) {
      const last = active;
      pause(last);
      last.shell.classList.remove("active");
      showPaused(last); // its players do not say so: they drop their events when they let go their files
      last.lanes.forEach((lane) => {
        if (!lane.audio) return;
        lane.audio.removeAttribute("src");
        lane.audio.load();
      });
      active = null;
      show(last);
    }
    active = row;
    row.heard = row.lanes[row.lane];
    row.shell.classList.add("active");
    row.lanes.forEach((lane) => {
      if (!lane.audio) return;
      lane.audio.preload = "auto";
      lane.audio.src = lane.address;
    });
    setVolumes(row);
    setCurrent(row);
  }

  /** How loud a lane is played: up to 1 only, so that all lanes of a row are turned down by the largest gain. */
  function volumeOf(row, lane) {
    if (!match.checked) return 1;
    const largest = Math.max(...row.lanes.map(({ gain }) => gain)); // one that is unknown, null, counts as 0
    return Math.max(QUIETEST, 10 ** ((lane.gain - largest) / 20));
  }

  function setVolumes(row) {
    row.lanes.forEach((lane) => { if (lane.audio) lane.audio.volume = volumeOf(row, lane); });
  }

  /** Set the players to the position: one is heard, and a take that continues it waits at the cut. */
  function place(row) {
    const lane = row.lanes[row.lane];
    row.heard = laneAt(row, lane, row.position);
    row.lanes.forEach((each) => { if (each !== row.heard) each.audio?.pause(); });
    row.heard.audio.currentTime = Math.max(0, Math.min(row.position, ending(row.heard)) - row.heard.start);
    if (row.heard !== lane) lane.audio.currentTime = row.job.cut - lane.start;
  }

  function start(row) {
    const { heard } = row;
    return heard.audio.play().catch((error) => {
      if (error.name !== "AbortError") warn(`${heard.label} cannot be played`);
    });
  }

  /** Go over from the source to the take that continues it; the source goes on until the take is heard. */
  function goOver(row) {
    const source = row.heard;
    row.heard = row.lanes[row.lane];
    row.position = row.job.cut;
    start(row).then(() => { if (row.heard !== source) source.audio.pause(); });
  }

  function play(row) {
    activate(row);
    const lane = row.lanes[row.lane];
    if (Math.abs(row.position - ending(lane)) < 0.05) row.position = beginning(row, lane); // played to its end: once more
    enter(row);
    place(row);
    start(row);
    show(row);
  }

  function pause(row) {
    row.lanes.forEach((lane) => lane.audio?.pause());
  }

  function showPaused(row) {
    row.shell.classList.remove("playing");
    row.parts.play.setAttribute("aria-label", `Play ${row.job.title}`);
  }

  function toggle(row) {
    if (playing(row)) pause(row);
    else play(row);
  }

  /** Hear another lane at a position: by default the same, where it has one. */
  function choose(row, index, position = null) {
    const lane = row.lanes[index];
    if (index === row.lane) return;
    const wasPlaying = playing(row);
    if (wasPlaying) follow(row);
    pause(row);
    row.position = position ?? row.position;
    row.lane = index;
    if (lane.take) row.take = index;
    showLane(row);
    say(lane.label);
    enter(row);
    if (wasPlaying) play(row);
    else show(row);
  }

  function seek(row, position) {
    const [from, to] = span(row);
    row.position = Math.min(to, Math.max(from, position));
    if (row === active) {
      const wasPlaying = playing(row);
      place(row);
      if (wasPlaying) start(row);
    }
    show(row);
  }

  /** Whether a row has a seam; says so if it has none. */
  function hasSeam(row) {
    if (row.job.cut === null) warn("It is not known where the new part begins");
    return row.job.cut !== null;
  }

  function toSeam(row) {
    if (!hasSeam(row)) return;
    row.position = beforeSeam(row, row.lanes[row.lane]);
    play(row);
  }

  function loop(row) {
    if (!hasSeam(row)) return;
    row.isLooped = !row.isLooped;
    row.parts.loop.setAttribute("aria-pressed", String(row.isLooped));
    say(row.isLooped ? "Loop on" : "Loop off");
    if (row.isLooped) toSeam(row);
  }

  function follow(row) {
    row.position = row.heard.start + row.heard.audio.currentTime;
  }

  /** Follow what is heard, and turn back at the end of a loop. */
  function tick(row) {
    if (!playing(row)) return;
    follow(row);
    if (row.heard !== row.lanes[row.lane] && row.position >= row.job.cut) goOver(row);
    else if (row.isLooped && row.position >= row.job.cut + ROUND) seek(row, beforeSeam(row, row.lanes[row.lane]));
    else if (!calm.matches || Math.floor(row.position) !== row.second) show(row);
  }

  function frame() {
    if (!active || !playing(active)) return;
    tick(active);
    nextFrame = requestAnimationFrame(frame);
  }

  function listen(row, lane) {
    const on = (name, then) => lane.audio.addEventListener(name, () => { if (row === active && row.heard === lane) then(); });
    on("play", () => {
      row.shell.classList.add("playing");
      row.parts.play.setAttribute("aria-label", `Pause ${row.job.title}`);
      cancelAnimationFrame(nextFrame); // one player may take over from another
      nextFrame = requestAnimationFrame(frame);
    });
    lane.audio.addEventListener("pause", () => {
      if (!playing(row)) showPaused(row);
    });
    on("timeupdate", () => tick(row)); // also where frames stand still, as in a tab that is not seen
    on("ended", () => {
      if (lane.seconds) row.position = ending(lane);
      if (lane !== row.lanes[row.lane]) goOver(row); // a source that is cut at its end
      else if (row.isLooped) toSeam(row);
      else show(row);
    });
    on("error", () => warn(`${lane.label} cannot be played`));
    lane.audio.addEventListener("loadedmetadata", () => {
      if (lane.seconds || !Number.isFinite(lane.audio.duration)) return;
      lane.seconds = lane.audio.duration;
      showLane(row);
      showSpan(row);
      show(row);
    });
  }

  // ---------------------------------------------------------------- keys

  function go(step) {
    const seen = rows.filter((row) => !row.shell.hidden);
    const next = seen[current ? seen.indexOf(current) + step : 0];
    if (!next) return;
    const wasPlaying = active && playing(active);
    build(next);
    setCurrent(next);
    next.shell.scrollIntoView({ block: "center", behavior: calm.matches ? "auto" : "smooth" });
    next.parts.title.focus({ preventScroll: true });
    if (wasPlaying && isPlayable(next)) play(next);
    else if (wasPlaying) pause(active);
  }

  const decideBy = (verdict) => (row) => {
    const lane = row.lanes[row.lane];
    if (lane.choice) decide(lane, verdict);
    else warn("The source gets no verdict: choose a take");
  };
  const KEYS = {
    " ": toggle,
    ArrowLeft: (row) => seek(row, row.position - STEP),
    ArrowRight: (row) => seek(row, row.position + STEP),
    g: toSeam,
    l: loop,
    k: decideBy("keep"),
    d: decideBy("drop"),
    e: (row) => row.lanes[row.take].note?.focus(), // the source has none
  };

  function onKey(event) {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    if (target.matches("input:not([type=range], [type=checkbox]), select, textarea")) {
      if (event.key === "Escape" && target.matches(".note")) current.parts.title.focus({ preventScroll: true });
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === " " && target.matches("button, a, [type=checkbox]")) return;
    if (/^[a-z0-9?]$/.test(key) && !find("keys-on").checked) return;
    const row = current && !current.shell.hidden ? current : rows.find((each) => isPlayable(each) && !each.shell.hidden);
    if (key === "?") find("help").showModal();
    else if (key === "n" || key === "p") go(key === "n" ? 1 : -1);
    else if (row && isPlayable(row) && (/^[0-9]$/.test(key) || Object.hasOwn(KEYS, key))) {
      build(row);
      setCurrent(row);
      const index = row.lanes.findIndex((lane) => lane.take === Number(key) && lane.address);
      if (Object.hasOwn(KEYS, key)) KEYS[key](row);
      else if (index < 0) warn(key === "0" ? "The source is not here" : `Take ${key} is not here`);
      else choose(row, index);
    } else return;
    event.preventDefault();
  }

  // ---------------------------------------------------------------- the page

  function sift() {
    const words = find("search").value.trim().toLowerCase();
    const wanted = find("filter").value;
    rows.forEach((row) => {
      const own = row.lanes.filter((lane) => lane.take && lane.address).map((lane) => verdictOf(lane.name));
      const text = [row.job.title, row.job.source, row.job.key, ...own.map((each) => each.note)].join(" ").toLowerCase();
      const fits = {
        all: true,
        open: own.some((each) => !each.verdict),
        failed: Boolean(row.job.error),
      }[wanted] ?? own.some((each) => each.verdict === wanted);
      row.shell.hidden = !(fits && text.includes(words));
    });
    const shown = rows.filter((row) => !row.shell.hidden).length;
    find("nothing").hidden = shown > 0;
    say(`${shown} of ${rows.length} shown`);
  }

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const row = rows.find((each) => each.shell.contains(target));
      draw(row, row.lanes.find((lane) => lane.wave === target));
    }
  });
  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      sight.unobserve(entry.target);
      build(rows.find((row) => row.shell === entry.target));
    }
  }, { rootMargin: "800px 0px" });

  const failed = rows.filter((row) => ["failed", "rejected"].includes(row.job.state)).length;
  const unknown = rows.filter((row) => row.job.error).length - failed;
  const finished = rows.filter((row) => row.job.step === 0).length;
  const songs = rows.filter((row) => row.job.step === 1).length; // of a chain, only its first step is one
  find("summary").textContent = [count(songs, "song"), count(takes.length - finished, "take"), finished ? `${finished} finished` : "", failed ? `${failed} failed` : "", unknown ? `${unknown} unknown` : ""].filter(Boolean).join(" · ");
  main.append(...rows.map(makeShell));
  rows.forEach((row) => sight.observe(row.shell));
  showProgress();

  for (const id of ["match", "keys-on"]) remember(id);
  offerMatching();

  find("search").addEventListener("input", sift);
  find("filter").addEventListener("change", sift);
  find("keys").addEventListener("click", () => find("help").showModal());
  match.addEventListener("change", () => {
    if (active) setVolumes(active);
    drawAll();
  });
  find("export").addEventListener("click", download);
  document.addEventListener("keydown", onKey);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours = null;
    drawAll();
  });
})();
