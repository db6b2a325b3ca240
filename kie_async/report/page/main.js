"use strict";
// The keys, and the start of the page.

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
  ArrowLeft: (row) => jump(row, row.position - STEP),
  ArrowRight: (row) => jump(row, row.position + STEP),
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
    const texts = [row.name, row.job.source, row.job.key, ...row.lanes.map((lane) => lane.title), ...own.map((each) => each.note)];
    const fits = {
      all: true,
      open: own.some((each) => !each.verdict),
      failed: Boolean(row.job.error),
    }[wanted] ?? own.some((each) => each.verdict === wanted);
    row.shell.hidden = !(fits && texts.join(" ").toLowerCase().includes(words));
  });
  const shown = rows.filter((row) => !row.shell.hidden).length;
  find("nothing").hidden = shown > 0;
  say(`${shown} of ${rows.length} shown`);
}

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
find("jobs").append(...rows.map(makeShell));
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
addEventListener("beforeprint", () => rows.forEach(build));
document.addEventListener("keydown", onKey);
matchMedia("screen and (prefers-color-scheme: dark)").addEventListener("change", drawAll); // and paper is light
