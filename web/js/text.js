// The text output of a node after a run, such as a summary of the recording.
import { addPanel, make } from "./dom.js";
import { say } from "./texts.js";

export class Text {
  constructor(node) {
    this.element = make("pre", { className: "goca-text goca-note", textContent: say("laterText"), attributes: { "aria-live": "polite" } });
    this.panel = addPanel(node, "goca_text", 44);
    this.panel.append(this.element);
  }

  executed(output) {
    const text = output.text?.join("\n");
    if (!text) return;
    this.element.textContent = text;
    this.element.classList.remove("goca-note");
  }
}
