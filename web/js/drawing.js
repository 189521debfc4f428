// Draws masks and heat maps over an image, and maps points of the drawing back to positions in the image.
import { gradient } from "./sheet.js";

const [SMALL, HARD, TILE] = [256, 64, 160];
const LABEL = 0.2; // height of a label, relative to the width of its tile
const PAPER = "#333";

const STEPS = ["recorded", "rescaled", "final scores"]; // and the mask, under the name of its phrase

/** One sample, decoded: `heat`, `masks` and `steps` are Maps or null, `picture` an image or null. */
export class Drawing {
  constructor({ heat, masks, steps, picture }, tables) {
    this.heat = heat;
    this.masks = masks;
    this.steps = steps;
    this.picture = picture;
    this.tables = tables;
    this.kept = new Map();
    const of = picture ? { width: picture.naturalWidth, height: picture.naturalHeight } : masks ?? heat;
    const scale = Math.max(1, Math.ceil(SMALL / of.width));
    this.size = [of.width * scale, of.height * scale];
    // Small images are drawn without interpolation, so that single pixels can be seen.
    this.hard = Math.max(of.width, of.height) <= HARD;
  }

  /** `shown`: "masks", "all", "steps" or the index of a word. `map`: name of a colour map. `mark`: position of the cross, or null. */
  paint(canvas, shown, map, opacity, mark) {
    const context = canvas.getContext("2d");
    const grid = this.#grid(shown);
    [canvas.width, canvas.height] = grid ? [grid.columns * grid.width, grid.rows * (grid.height + grid.label)] : this.size;
    if (grid) this.#all(context, grid, map, opacity);
    else this.#one(context, [0, 0, ...this.size], shown === "masks" ? { masks: true } : { heat: shown }, map, opacity);
    if (mark) cross(context, mark.x * canvas.width, mark.y * canvas.height);
  }

  /** The position in the image (0 to 1) and the word tile for a position on the drawing; null between the tiles. */
  place(shown, x, y) {
    const grid = this.#grid(shown);
    if (!grid) return { x, y, word: -1 };
    const [column, row] = [Math.floor(x * grid.columns), Math.floor(y * grid.rows)];
    const cell = row * grid.columns + column;
    const down = ((y * grid.rows - row) * (grid.height + grid.label) - grid.label) / grid.height;
    if (cell >= grid.cells.length || down < 0) return null;
    return { x: x * grid.columns - column, y: down, word: shown === "all" ? cell : -1 };
  }

  /** The words at a position, sorted by score, and the masks that cover it. */
  at({ x, y }) {
    const words = (this.heat?.names ?? []).map((name, k) => [name, this.heat.value(k, x, y)]);
    const masks = (this.masks?.names ?? []).map((_, k) => k).filter((k) => this.masks.value(k, x, y) >= 0.5);
    return { words: words.sort((a, b) => b[1] - a[1]), masks };
  }

  /** The layout of a grid of tiles, with the name and content of each; null when a single image is shown. */
  #grid(shown) {
    let cells, columns;
    if (shown === "all") {
      cells = this.heat.names.map((name, k) => [name, { heat: k }]);
      columns = Math.ceil(Math.sqrt(cells.length));
    } else if (shown === "steps") {
      const { names } = this.masks;
      const row = (name, k) => [...STEPS.map((step, i) => [step, { step: i * names.length + k }]), [name, { mask: k }]];
      cells = names.flatMap(row);
      columns = STEPS.length + 1;
    } else return null;
    const width = Math.max(TILE, Math.min(this.size[0], 2 * TILE));
    const height = Math.round((width * this.size[1]) / this.size[0]);
    return { cells, columns, rows: Math.ceil(cells.length / columns), width, height, label: Math.round(LABEL * width) };
  }

  #all(context, grid, map, opacity) {
    context.fillStyle = "#222";
    context.fillRect(0, 0, context.canvas.width, context.canvas.height);
    context.font = `${Math.round(0.75 * grid.label)}px sans-serif`;
    context.textBaseline = "middle";
    grid.cells.forEach(([name, what], k) => {
      const [x, y] = [(k % grid.columns) * grid.width, Math.floor(k / grid.columns) * (grid.height + grid.label)];
      this.#one(context, [x, y + grid.label, grid.width, grid.height], what, map, opacity);
      context.fillStyle = "#fff";
      context.fillText(name, x + 4, y + grid.label / 2, grid.width - 8);
    });
  }

  /** `what`: all the masks, or one `mask`, `heat` map or `step` by its number. */
  #one(context, box, what, map, opacity) {
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = !this.hard;
    const masks = what.masks || "mask" in what;
    if (this.picture) {
      // The image is grey here: its own colours could be mistaken for those of the heat map.
      context.filter = masks ? "none" : "grayscale(1)";
      context.drawImage(this.picture, ...box);
      context.filter = "none";
    } else {
      context.fillStyle = PAPER;
      context.fillRect(...box);
    }
    context.globalAlpha = this.picture ? opacity : 1;
    if (masks) {
      context.imageSmoothingEnabled = false;
      const numbers = what.masks ? this.masks.names.keys() : [what.mask];
      for (const k of numbers) context.drawImage(this.#mask(k), ...box);
    } else {
      context.imageSmoothingEnabled = true;
      context.drawImage("step" in what ? this.#map("steps", what.step, map) : this.#map("heat", what.heat, map), ...box);
    }
    context.globalAlpha = 1;
  }

  #mask(k) {
    const colour = this.tables.colours[k % this.tables.colours.length];
    return this.#keep(`mask ${k}`, () => this.masks.painted(k, (value) => [...colour, value]));
  }

  #map(kind, k, map) {
    return this.#keep(`${kind} ${k} ${map}`, () => this[kind].painted(k, gradient(this.tables.maps[map])));
  }

  #keep(key, painted) {
    if (!this.kept.has(key)) this.kept.set(key, painted());
    return this.kept.get(key);
  }
}

function cross(context, x, y) {
  for (const [style, width] of [["#000", 3], ["#fff", 1]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: width });
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, context.canvas.height);
    context.moveTo(0, y);
    context.lineTo(context.canvas.width, y);
    context.stroke();
  }
}
