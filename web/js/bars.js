// The weight of each layer in the maps, as bars in the order of the layers.

const [WIDTH, HEIGHT, EDGE, FONT] = [512, 256, 26, 14];

export class Bars {
  /** `layers`: as goca_core/view.py makes it. `colour`: of the bars, as [red, green, blue]. */
  constructor(layers, colour) {
    this.layers = layers;
    this.colour = colour;
  }

  get count() {
    return this.layers.names.length;
  }

  paint(canvas, sample, mark) {
    const weights = this.layers.weights[sample];
    const top = Math.max(...weights);
    [canvas.width, canvas.height] = [WIDTH, HEIGHT];
    const context = canvas.getContext("2d");
    context.fillStyle = "#222";
    context.fillRect(0, 0, WIDTH, HEIGHT);
    const [wide, high] = [WIDTH / this.count, HEIGHT - 2 * EDGE];
    const here = mark ? this.at(mark.x) : -1;
    weights.forEach((weight, k) => {
      const height = top > 0 ? (high * weight) / top : 0;
      context.fillStyle = k === here ? "#fff" : `rgb(${this.colour.join(" ")})`;
      context.fillRect(k * wide + wide * 0.1, HEIGHT - EDGE - height, wide * 0.8, height);
    });
    Object.assign(context, { fillStyle: "#fff", font: `${FONT}px sans-serif`, textBaseline: "middle" });
    context.fillText(`${this.count} layers, largest weight ${(100 * top).toFixed(1)} %`, 6, EDGE / 2, WIDTH - 12);
    context.fillText("first", 6, HEIGHT - EDGE / 2);
    context.textAlign = "right";
    context.fillText("last", WIDTH - 6, HEIGHT - EDGE / 2);
    context.textAlign = "left";
  }

  /** The number of the layer at position x, from 0 to 1. */
  at(x) {
    return Math.min(this.count - 1, Math.floor(x * this.count));
  }

  describe(k, sample) {
    const [width, height] = this.layers.grids[k];
    const share = (100 * this.layers.weights[sample][k]).toFixed(1);
    return `layer ${k + 1}, ${this.layers.names[k]}, ${width} x ${height} tokens: ${share} %`;
  }

  /** The layers with the largest weights as text, for screen readers. */
  summary(sample) {
    const order = [...this.layers.weights[sample].keys()].sort((a, b) => this.layers.weights[sample][b] - this.layers.weights[sample][a]);
    return order.slice(0, 3).map((k) => this.describe(k, sample)).join("; ");
  }
}
