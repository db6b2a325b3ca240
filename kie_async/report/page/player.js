"use strict";
// Playing: one row at a time, of which one lane is heard.

const STEP = 5; // seconds of an arrow key
const QUIETEST = 0.25; // the lowest volume that matches levels, of a lane that is 12 dB louder than another

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const match = find("match"); // the switch
let active = null; // the row whose audio is loaded
let nextFrame = 0;
const playing = (row) => row === active && !row.heard.audio.paused;
const beginning = (row, lane) => (isContinued(row, lane) ? row.lanes[0].start : lane.start);
const ending = (lane) => (lane.seconds ? lane.start + lane.seconds : Infinity); // until its length is known

/** Just before the seam; of a lane that has none, its last seconds, or its beginning if nothing is known. */
function beforeSeam(row, lane) {
  const seam = row.job.seams[row.seam];
  return seam === undefined ? lane.start : Math.max(beginning(row, lane), Math.min(seam, ending(lane)) - ROUND);
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
  row.parts.play.setAttribute("aria-label", `Play ${row.name}`);
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

/** Go to where the visitor points: the seam that is nearest is the one to loop round. */
function jump(row, position) {
  row.seam = nearestSeam(row, position);
  seek(row, position);
}

/** Whether a row has a seam; says so if it has none. */
function hasSeam(row) {
  const isKnown = row.job.seams.length > 0;
  if (!isKnown) warn(row.job.notice || "It is not known where the new part begins");
  return isKnown;
}

function toSeam(row) {
  if (!hasSeam(row)) return;
  row.seam = nextSeam(row, row.position);
  playSeam(row);
}

function playSeam(row) {
  row.position = beforeSeam(row, row.lanes[row.lane]);
  play(row);
}

function loop(row) {
  if (!hasSeam(row)) return;
  row.isLooped = !row.isLooped;
  row.parts.loop.setAttribute("aria-pressed", String(row.isLooped));
  say(row.isLooped ? "Loop on" : "Loop off");
  if (row.isLooped) playSeam(row);
}

function follow(row) {
  row.position = row.heard.start + row.heard.audio.currentTime;
}

/** Follow what is heard, and turn back at the end of a loop. */
function tick(row) {
  if (!playing(row)) return;
  follow(row);
  if (row.heard !== row.lanes[row.lane] && row.position >= row.job.cut) goOver(row);
  else if (row.isLooped && row.position >= row.job.seams[row.seam] + ROUND) seek(row, beforeSeam(row, row.lanes[row.lane]));
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
    row.parts.play.setAttribute("aria-label", `Pause ${row.name}`);
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
    else if (row.isLooped) playSeam(row);
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
