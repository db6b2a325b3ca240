"use strict";
// The rows of the report and their time lines. The scripts of the page follow one another as the page lists them, and
// share its global scope; this one makes and changes no element.

const ROUND = 3; // seconds before and after a seam that are looped

const data = JSON.parse(document.getElementById("data").textContent);

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

function laneLabel(job, lane) {
  if (!lane.take) return "Source";
  return job.step ? `Take ${lane.take}` : "Song"; // the finished song of a chain is no take
}

/** Which step of a chain a row is, or that it is what the chain has made. */
function stepOf({ step, steps }) {
  if (!step) return `finished song of ${count(steps, "step")}`;
  return steps > 1 ? `step ${step} of ${steps}` : "";
}

function makeRow(job) {
  const first = Math.max(0, job.lanes.findIndex((lane) => lane.take && lane.address));
  return {
    job,
    name: [job.title, stepOf(job)].filter(Boolean).join(", "), // for who does not see where it stands
    lanes: job.lanes.map((lane) => ({ ...lane, label: laneLabel(job, lane) })),
    lane: first,
    take: first, // chosen last, of the takes
    heard: null, // the lane whose player is the one that plays
    seam: 0, // which of its seams the keys are for
    position: 0,
    size: { width: 0, height: 0 }, // of its waveforms, in pixels; 0 while that is not known
    isLooped: false,
    isBuilt: false,
    parts: {},
  };
}

const rows = data.jobs.map(makeRow);

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

/** The seam of a row that is nearest to a position. */
function nearestSeam({ job: { seams } }, position) {
  const away = seams.map((seam) => Math.abs(seam - position));
  return Math.max(0, away.indexOf(Math.min(...away)));
}

/** The seam of a row that comes after a position, and is not about to: the first, if none does. */
function nextSeam({ job: { seams } }, position) {
  return Math.max(0, seams.findIndex((seam) => seam - ROUND > position + 0.05));
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

/** The step that extends a take, if one does. */
function continuedIn({ step }, lane) {
  return lane.take ? data.jobs.find((job) => job.step === step + 1 && job.source === lane.name) : undefined;
}

function facts(job) {
  return [
    job.state === "delivered" ? "" : job.state,
    origin(job),
    job.source && job.lanes.every((lane) => lane.take) ? "its source is not here" : "",
    job.cut === null ? "" : `cut at ${exact(job.cut)}`,
    job.step || !job.seams.length ? "" : `${count(job.seams.length, "seam")}: ${job.seams.map(exact).join(", ")}`,
    job.notice,
    job.model,
  ].filter(Boolean);
}
