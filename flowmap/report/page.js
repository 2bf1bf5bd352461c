"use strict";
// The player: every clip is one picture with its frames in rows, so that all show the same frame at the same time.
const album = JSON.parse(document.getElementById("album")?.textContent ?? "null");
if (album) {
  const player = document.querySelector(".player"), slider = document.getElementById("steps");
  const told = document.getElementById("told"), frameSlider = document.getElementById("frame");
  const button = document.getElementById("play"), renoised = document.getElementById("more");
  const pictures = album.files.map((source) => { const one = new Image(); one.src = source; return one; });
  let frame = 0, playing = album.frames > 1, started = performance.now();
  const cells = [...player.querySelectorAll("canvas")].map((canvas) => {
    canvas.width = album.width; canvas.height = album.height;
    canvas.classList.toggle("exact", Math.max(album.width, album.height) <= 128);
    return { canvas, paper: canvas.getContext("2d"), prompt: +canvas.dataset.prompt, model: canvas.dataset.model,
             fixed: canvas.dataset.steps ? +canvas.dataset.steps : null, label: canvas.nextElementSibling };
  });
  const steps = () => album.steps[+slider.value];
  function draw() {
    for (const cell of cells) {
      if (cell.canvas.closest("figure").hidden) continue;
      const count = cell.fixed ?? steps(), files = album.clips[cell.model + "/" + count];
      const picture = pictures[files[cell.prompt]];
      cell.canvas.dataset.shows = cell.model + "/" + count; cell.canvas.dataset.frame = frame;
      if (!picture.complete || !picture.naturalWidth) continue;
      const x = frame % album.columns, y = Math.floor(frame / album.columns);
      cell.paper.drawImage(picture, x * album.width, y * album.height, album.width, album.height,
                           0, 0, album.width, album.height);
    }
  }
  function label() {
    const n = steps();
    told.textContent = n === 1 ? "1 step" : n + " steps";
    for (const cell of cells) if (cell.fixed === null) {
      const calls = album.calls[cell.model + "/" + n];
      cell.label.textContent = cell.model + ", " + calls + (calls === 1 ? " call" : " calls");
    }
  }
  function tick(now) {
    if (playing) {
      const next = Math.floor((now - started) / 1000 * album.rate) % album.frames;
      if (next !== frame) { frame = next; frameSlider.value = frame; draw(); }
    }
    requestAnimationFrame(tick);
  }
  const stop = () => { playing = false; button.textContent = "Play"; };
  slider.addEventListener("input", () => { label(); draw(); });
  frameSlider.addEventListener("input", () => { stop(); frame = +frameSlider.value; draw(); });
  button.addEventListener("click", () => {
    if (playing) return stop();
    playing = true; button.textContent = "Pause"; started = performance.now() - 1000 * frame / album.rate;
  });
  renoised?.addEventListener("change", () => {
    for (const one of player.querySelectorAll("figure.more")) one.hidden = !renoised.checked;
    for (const row of player.querySelectorAll(".clips")) {
      row.style.gridTemplateColumns = "repeat(" + row.querySelectorAll("figure:not([hidden])").length + ", 1fr)";
    }
    draw();
  });
  Promise.all(pictures.map((one) => one.decode().catch(() => null))).then(() => { label(); draw(); player.dataset.ready = "1"; });
  label();
  requestAnimationFrame(tick);
}
// The course of training: one picture at a time.
const course = document.getElementById("course");
if (course) {
  const show = () => document.querySelectorAll(".course figure").forEach((one, k) => { one.hidden = k !== +course.value; });
  course.addEventListener("input", show);
  show();
}
