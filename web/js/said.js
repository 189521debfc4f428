// What a node has to tell before anything else: the error of the last run, and warnings about its inputs and results.
import { addPanel, make } from "./dom.js";

export class Said {
  error = "";

  constructor(panel) {
    this.element = make("div", { className: "goca-said", hidden: true, attributes: { role: "alert" } });
    this.warnings = [];
    panel.prepend(this.element);
  }

  fail(error) {
    this.error = error;
    this.#show();
  }

  warn(warnings) {
    if (warnings.join("\n") === this.warnings.join("\n")) return;
    this.warnings = warnings;
    this.#show();
  }

  #show() {
    const lines = [...(this.error ? [["goca-error", this.error]] : []), ...this.warnings.map((text) => ["goca-warning", text])];
    this.element.hidden = !lines.length;
    this.element.replaceChildren(...lines.map(([className, textContent]) => make("p", { className, textContent })));
  }
}

/** The error of a node that has no panel otherwise. The panel goes with the error. */
export class Failed {
  constructor(node) {
    this.node = node;
    this.size = [...node.size];
    this.panel = addPanel(node, "goca_said", 44);
    this.said = new Said(this.panel);
    const [width, height] = this.node.computeSize();
    this.node.setSize([Math.max(this.size[0], width), Math.max(this.size[1], height)]);
  }

  remove() {
    const widget = this.node.widgets?.find((one) => one.element === this.panel);
    if (!widget) return;
    this.node.removeWidget(widget);
    this.node.setSize(this.size);
  }
}
