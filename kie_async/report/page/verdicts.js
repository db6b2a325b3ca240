"use strict";
// Verdicts and notes, which stay in the browser by folder, and their export; what is said to the visitor.

const find = (id) => document.getElementById(id);
let saying = 0; // the timer of what is about to be said

/** Make an element: its attributes, and its children, which are elements or text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Have a screen reader say a text; one that nothing else on the page shows is seen, too. */
function say(text, { isShown = false } = {}) {
  const live = find("live");
  live.textContent = "";
  live.className = isShown ? "shown" : "sr";
  clearTimeout(saying);
  saying = setTimeout(() => { live.textContent = text; }, 20); // said again though it is the same
}

const warn = (text) => say(text, { isShown: true });

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
