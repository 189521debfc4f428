// The viewer for masks and heat maps: switches between words, ranks the words at a pixel, saves a PNG.
import { Bars } from "./bars.js";
import { make, rgb } from "./dom.js";
import { Drawing } from "./drawing.js";
import { load, Maps } from "./sheet.js";
import { say } from "./texts.js";

const [MASKS, ALL, STEPS, LAYERS, WORD] = ["masks", "all", "steps", "layers", "word "];
const STEP = 1 / 32;

function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

function option(value, text) {
  return make("option", { value, textContent: text });
}

export class Viewer {
  view = null; // of the last run
  table = null;
  bars = null;
  sample = 0;
  drawing = null; // of the sample, once its images have loaded
  ticket = 0; // of the latest request for images
  word = -1; // the previewed word, or -1
  mark = null; // position of the keyboard cursor
  noted = "";

  /**
   * `tables`: the colours. `settings`: read(name) and write(name, value) of the settings saved with the graph: `show`,
   * `map` and `opacity`. `empty`: the text to show before the first run. `take`: called with the word of a clicked place.
   */
  constructor({ tables, settings, empty, take = (_name) => {} }) {
    this.tables = tables;
    this.take = take;
    this.settings = settings;
    this.canvas = make("canvas", { tabIndex: 0, hidden: true, attributes: { role: "img" } });
    this.empty = make("div", { className: "goca-note", textContent: empty });
    this.legend = make("ul", { className: "goca-legend", attributes: { "aria-label": say("legend") } });
    this.readout = make("div", { className: "goca-readout", attributes: { role: "status" } });
    this.show = this.#select(say("view"), () => this.#set("show", this.show.value));
    this.map = this.#select(say("map"), () => this.#set("map", this.map.value));
    this.samples = this.#select(say("image"), () => this.#open(Number(this.samples.value)));
    this.map.append(...Object.keys(tables.maps).map((name) => option(name, name)));
    this.opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, title: say("opacity") });
    this.opacity.setAttribute("aria-label", say("opacity"));
    this.opacity.addEventListener("input", () => this.#paint());
    this.opacity.addEventListener("change", () => this.#set("opacity", Number(this.opacity.value)));
    this.save = make("button", { type: "button", className: "goca-tool", textContent: "PNG", title: say("save") });
    this.save.addEventListener("click", () => this.#saved());
    this.tools = make("div", { className: "goca-tools", hidden: true },
      this.show, this.samples, this.map, this.opacity, this.save);
    const stage = make("div", { className: "goca-stage" }, this.canvas, this.empty, this.readout);
    this.element = make("div", { className: "goca-view" }, stage, this.legend, this.tools);
    this.canvas.addEventListener("pointermove", (event) => this.#pointed(event));
    this.canvas.addEventListener("pointerleave", () => this.#tell(null));
    this.canvas.addEventListener("click", (event) => this.#clicked(event));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("blur", () => this.#moved(null));
  }

  /** Show the result of a run: `view` as nodes/ui.py makes it, `table` with the areas of the masks, if any. */
  async open(view, table) {
    this.view = view;
    this.table = table;
    this.sample = 0;
    this.word = -1; // a new run ends the preview of a word
    const count = (view.heat ?? view.masks).files.length;
    this.samples.replaceChildren(...Array.from({ length: count }, (_, i) => option(i, `${say("image")} ${i + 1}`)));
    this.samples.hidden = count < 2;
    const choices = view.masks ? [option(MASKS, say("masks"))] : [];
    if (view.heat) choices.push(option(ALL, say("all")), ...view.heat.names.map((name) => option(WORD + name, name)));
    if (view.steps) choices.push(option(STEPS, say("steps")));
    if (view.layers) choices.push(option(LAYERS, say("layers")));
    this.bars = view.layers && new Bars(view.layers, this.tables.colours[1]);
    this.show.replaceChildren(...choices);
    await this.#open(0);
  }

  /** Apply the settings saved with the graph, which may have changed. */
  refresh() {
    if (!this.drawing) return;
    const wanted = this.settings.read("show");
    this.show.value = [...this.show.options].some((one) => one.value === wanted) ? wanted : this.show.options[0].value;
    this.map.value = this.tables.maps[this.settings.read("map")] ? this.settings.read("map") : this.map.options[0].value;
    this.opacity.value = this.settings.read("opacity");
    this.#paint();
  }

  /** Preview the heat map of a word; an empty name ends the preview. */
  preview(name) {
    const word = this.drawing?.heat?.names.indexOf(name) ?? -1;
    if (word === this.word) return;
    this.word = word;
    if (this.drawing) this.#paint();
  }

  /** Show a message while the pointer is not over the image. */
  note(text) {
    this.noted = text;
    if (!this.readout.dataset.place) this.readout.textContent = text;
  }

  async #open(sample) {
    const { view } = this;
    const ticket = ++this.ticket;
    const maps = (layout) => (layout ? Maps.of(layout, sample) : null);
    const files = view.picture?.files ?? [];
    const file = files.length === 1 ? files[0] : files[sample]; // one image may stand for a whole batch
    try {
      const [heat, masks, steps, picture] = await Promise.all(
        [maps(view.heat), maps(view.masks), maps(view.steps), file ? load(file) : null]);
      // A newer run may have finished while these were loading.
      if (ticket !== this.ticket) return;
      this.sample = sample;
      this.drawing = new Drawing({ heat, masks, steps, picture }, this.tables);
    } catch {
      if (ticket !== this.ticket) return;
      this.drawing = null;
      this.empty.textContent = say("lost");
    }
    for (const part of [this.canvas, this.tools]) part.hidden = !this.drawing;
    this.empty.hidden = Boolean(this.drawing);
    this.refresh();
  }

  /** Masks, all words, steps, layers, or the number of a word. */
  get #shown() {
    if (this.word >= 0) return this.word;
    const { value } = this.show;
    return value.startsWith(WORD) ? this.drawing.heat.names.indexOf(value.slice(WORD.length)) : value;
  }

  #select(label, changed) {
    const select = make("select", { title: label, attributes: { "aria-label": label } });
    select.addEventListener("change", changed);
    return select;
  }

  #set(name, value) {
    this.settings.write(name, value);
    this.refresh();
  }

  #paint(mark = this.mark) {
    const shown = this.#shown;
    if (shown === LAYERS) this.bars.paint(this.canvas, this.sample, mark);
    else this.drawing.paint(this.canvas, shown, this.map.value, Number(this.opacity.value), mark);
    this.map.hidden = shown === MASKS || shown === LAYERS;
    this.opacity.hidden = !this.drawing.picture || shown === LAYERS;
    this.#explain(shown);
  }

  #explain(shown) {
    const { area, background, background_phrases: behind } = this.table ?? {};
    let entries;
    if (shown === MASKS) {
      const { names } = this.drawing.masks;
      const share = (k) => (area ? ` ${percent(area[this.sample][k])}` : "");
      entries = names.map((name, k) => [`${name}${share(k)}`, rgb(this.tables.colours[k % this.tables.colours.length])]);
      const of = behind?.length ? ` (${behind.join(", ")})` : "";
      if (background) entries.push([`${say("background")}${of} ${percent(background[this.sample])}`, "transparent"]);
    } else if (shown === LAYERS) {
      entries = [[say("weight"), rgb(this.bars.colour)]];
    } else {
      const table = this.tables.maps[this.map.value];
      const name = { [ALL]: say("all"), [STEPS]: say("scores") }[shown] ?? this.drawing.heat.names[shown];
      entries = [[say("range", { name }), `linear-gradient(to right, ${table.map(rgb).join(", ")})`]];
    }
    this.legend.replaceChildren(...entries.map(([text, background_]) => {
      const swatch = make("i", { attributes: { "aria-hidden": true } });
      swatch.style.background = background_;
      if (shown !== MASKS && shown !== LAYERS) swatch.style.width = "48px";
      return make("li", {}, swatch, make("span", { textContent: text }));
    }));
    const told = shown === LAYERS ? this.bars.summary(this.sample) : entries.map(([text]) => text).join("; ");
    const kind = { [MASKS]: say("masks"), [LAYERS]: say("layers") }[shown] ?? say("heat");
    const what = say(shown === LAYERS ? "theLayers" : "thePixel");
    this.canvas.setAttribute("aria-label", say("aria", { kind, told, what }));
  }

  /** The position under the pointer, from 0 to 1; null outside of the drawing. */
  #under(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = Math.min(box.width / this.canvas.width, box.height / this.canvas.height);
    const x = 0.5 + (event.clientX - box.left - box.width / 2) / (this.canvas.width * scale);
    const y = 0.5 + (event.clientY - box.top - box.height / 2) / (this.canvas.height * scale);
    return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
  }

  #pointed(event) {
    if (this.drawing) this.#tell(this.#under(event));
  }

  #tell(point) {
    const shown = point && this.drawing ? this.#shown : null;
    const bars = shown === LAYERS;
    const place = shown === null || bars ? null : this.drawing.place(shown, point.x, point.y);
    const found = place && this.drawing.at(place);
    const told = bars ? this.bars.describe(this.bars.at(point.x), this.sample) : found && this.#ranking(found);
    this.readout.textContent = told || this.noted || "";
    this.readout.dataset.place = told ? "yes" : "";
    this.readout.classList.toggle("goca-above", Boolean(told) && point.y > 0.6);
    if (this.show.value === MASKS) {
      [...this.legend.children].forEach((item, k) => item.classList.toggle("goca-here", Boolean(found?.masks.includes(k))));
    }
  }

  #ranking({ words, masks }) {
    const names = masks.map((k) => this.drawing.masks.names[k]);
    const inside = this.drawing.masks ? `${names.join(" + ") || say("background")}: ` : "";
    return inside + words.slice(0, 5).map(([name, value]) => `${name} ${percent(value)}`).join(" · ");
  }

  /** A click takes the word that ranks first there, or in a map among all words shows that one. */
  #clicked(event) {
    const point = this.drawing && this.#shown !== LAYERS && this.#under(event);
    const place = point && this.drawing.place(this.#shown, point.x, point.y);
    if (place?.word >= 0) this.#set("show", WORD + this.drawing.heat.names[place.word]);
    else if (place && this.drawing.heat) this.take(this.drawing.at(place).words[0][0]);
  }

  #key(event) {
    const side = this.drawing && this.#shown === LAYERS ? 1 / this.bars.count : STEP;
    const step = { ArrowLeft: [-side, 0], ArrowRight: [side, 0], ArrowUp: [0, -side], ArrowDown: [0, side] }[event.key];
    if (!step || !this.drawing) return;
    event.preventDefault();
    const keep = (value) => Math.min(1 - side / 2, Math.max(side / 2, value));
    const { x, y } = this.mark ?? { x: 0.5, y: 0.5 };
    this.#moved({ x: keep(x + step[0]), y: keep(y + step[1]) });
  }

  #moved(mark) {
    if (!this.drawing || mark === this.mark) return;
    this.mark = mark;
    this.#paint();
    this.#tell(mark);
  }

  #saved() {
    this.#paint(null);
    const name = [...this.show.selectedOptions].map((one) => one.textContent).join();
    this.canvas.toBlob((blob) => {
      const url = URL.createObjectURL(blob);
      // Only letters and digits, which are safe in every file system.
      make("a", { href: url, download: `goca_${name.replace(/[^\p{L}\p{N}]+/gu, "_")}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
  }
}
