// Unpacks the maps of a sample, which arrive side by side in one greyscale image (goca_core/view.py).
import { api } from "../../../scripts/api.js";

/** An image from ComfyUI's temporary folder, decoded. */
export async function load(file) {
  const image = new Image();
  image.src = api.apiURL(`/view?${new URLSearchParams(file)}`);
  await image.decode();
  return image;
}

/**
 * A canvas of a size, and its context.
 * @returns {[HTMLCanvasElement, CanvasRenderingContext2D]}
 */
export function sheetOf(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
}

/** The maps of one sample: values 0..255 per pixel. */
export class Maps {
  constructor(layout, image) {
    this.names = layout.names;
    this.width = layout.width;
    this.height = layout.height;
    const [canvas, context] = sheetOf(image.naturalWidth, image.naturalHeight);
    context.drawImage(image, 0, 0);
    this.tiles = layout.names.map((_, k) => {
      const [x, y] = [(k % layout.columns) * layout.width, Math.floor(k / layout.columns) * layout.height];
      const { data } = context.getImageData(x, y, layout.width, layout.height);
      return Uint8ClampedArray.from({ length: layout.width * layout.height }, (_, i) => data[4 * i]);
    });
    canvas.width = 0; // frees its memory, which browsers otherwise keep for long
  }

  static async of(layout, sample) {
    return new Maps(layout, await load(layout.files[sample]));
  }

  /** The value of map k at a position, x and y from 0 to 1. */
  value(k, x, y) {
    const column = Math.min(this.width - 1, Math.floor(x * this.width));
    const row = Math.min(this.height - 1, Math.floor(y * this.height));
    return this.tiles[k][row * this.width + column] / 255;
  }

  /** Map k as a canvas; `paint(value)` gives red, green, blue and alpha, 0..255. */
  painted(k, paint) {
    const [canvas, context] = sheetOf(this.width, this.height);
    const image = context.createImageData(this.width, this.height);
    // Writes whole pixels at once, in the byte order of this machine.
    const colours = new Uint32Array(new Uint8ClampedArray(Array.from({ length: 256 }, (_, value) => paint(value)).flat()).buffer);
    const pixels = new Uint32Array(image.data.buffer);
    this.tiles[k].forEach((value, i) => { pixels[i] = colours[value]; });
    context.putImageData(image, 0, 0);
    return canvas;
  }
}

/** The colours of a table at 0..255, by linear interpolation. */
export function gradient(table) {
  return (value) => {
    const place = (value / 255) * (table.length - 1);
    const low = Math.min(Math.floor(place), table.length - 2);
    return [...table[low].map((from, i) => Math.round(from + (table[low + 1][i] - from) * (place - low))), 255];
  };
}
