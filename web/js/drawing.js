// Draws masks and heat maps over an image, and maps points of the drawing back to positions in the image.
import { gradient, sheetOf } from "./sheet.js";

const [SMALL, HARD, TILE] = [256, 64, 160];
const LABEL = 0.2; // height of a label, relative to the width of its tile
const UNDER = 512; // longest side of what is drawn of an image under a mask
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
    const alpha = this.picture ? opacity : 1;
    if (masks) {
      for (const k of what.masks ? this.masks.names.keys() : [what.mask]) {
        if (this.picture) this.#layer(context, box, this.#under(k), Math.min(1, 2 * alpha));
        this.#layer(context, box, this.#mask(k), alpha);
      }
    } else {
      context.globalAlpha = alpha;
      context.imageSmoothingEnabled = true;
      context.drawImage("step" in what ? this.#map("steps", what.step, map) : this.#map("heat", what.heat, map), ...box);
    }
    context.globalAlpha = 1;
  }

  #layer(context, box, canvas, alpha) {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, ...box);
  }

  #colour(k) {
    return this.tables.colours[k % this.tables.colours.length];
  }

  #mask(k) {
    return this.#keep(`mask ${k}`, () => this.masks.painted(k, (value) => [...this.#colour(k), value]));
  }

  /** The image under a mask in shades of the mask's colour: other colours could be mistaken for those of other masks. */
  #under(k) {
    return this.#keep(`under ${k}`, () => {
      const { light, contrast } = this.tables;
      const own = this.#colour(k);
      const level = brightness(own, light);
      const [width, height, image] = this.#small();
      const [canvas, context] = sheetOf(width, height);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.#mask(k), 0, 0, width, height);
      const mask = context.getImageData(0, 0, width, height);
      for (let i = 0; i < mask.data.length; i += 4) {
        if (!mask.data[i + 3]) continue;
        const shift = contrast * (brightness(image.subarray(i, i + 3), light) - level);
        const share = shift < 0 ? 1 + shift / Math.max(level, contrast) : shift / Math.max(1 - level, contrast);
        for (let c = 0; c < 3; c += 1) mask.data[i + c] = shift < 0 ? own[c] * share : own[c] + (255 - own[c]) * share;
      }
      context.putImageData(mask, 0, 0);
      return canvas;
    });
  }

  /** The pixels of the image at a size of which a few masks are drawn in no time. */
  #small() {
    return this.#keep("small", () => {
      const scale = Math.min(1, UNDER / Math.max(...this.size));
      const [width, height] = this.size.map((side) => Math.max(1, Math.round(side * scale)));
      const [, context] = sheetOf(width, height);
      context.imageSmoothingEnabled = !this.hard;
      context.drawImage(this.picture, 0, 0, width, height);
      return [width, height, context.getImageData(0, 0, width, height).data];
    });
  }

  #map(kind, k, map) {
    return this.#keep(`${kind} ${k} ${map}`, () => this[kind].painted(k, gradient(this.tables.maps[map])));
  }

  #keep(key, painted) {
    if (!this.kept.has(key)) this.kept.set(key, painted());
    return this.kept.get(key);
  }
}

/** From 0 to 1. */
function brightness(colour, light) {
  return (colour[0] * light[0] + colour[1] * light[1] + colour[2] * light[2]) / 255;
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
