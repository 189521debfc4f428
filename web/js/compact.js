// What the classic renderer lacks: names over text boxes, and advanced inputs that are folded away. The Vue renderer has both.
import { app } from "../../../scripts/app.js";
import { make } from "./dom.js";
import { isWired, widgetOf } from "./graph.js";
import { say } from "./texts.js";

const [TEXT, FONT, GAP] = [120, 10, 10]; // height of a text box at most, of its name, and of the room that there is for it

function classic() {
  return !globalThis.LiteGraph?.vueNodesMode;
}

/** Write the names of text boxes into the room above them. */
export function nameBoxes(nodeType) {
  const draw = nodeType.prototype.onDrawForeground;
  nodeType.prototype.onDrawForeground = function (context, ...given) {
    draw?.call(this, context, ...given);
    if (this.flags?.collapsed || app.canvas.low_quality) return;
    context.save();
    Object.assign(context, { font: `${FONT}px sans-serif`, textAlign: "left", fillStyle: globalThis.LiteGraph.WIDGET_SECONDARY_TEXT_COLOR });
    for (const widget of this.widgets ?? []) {
      if (widget.element?.tagName === "TEXTAREA" && !isWired(this, widget.name)) {
        context.fillText(widget.label ?? widget.name, GAP + 2, widget.y + GAP - 2);
      }
    }
    context.restore();
  };
}

/** Fold the advanced inputs of a node, with a button in its panel that shows them. Connected ones stay in sight. */
export function foldAdvanced(node, panel) {
  const advanced = node.widgets.filter((widget) => widget.options?.advanced);
  for (const widget of advanced) {
    widget.advanced = true; // ComfyUI's menu of the node has an entry for these
    const folded = () => classic() && !node.showAdvanced && !isWired(node, widget.name);
    Object.defineProperty(widget, "hidden", { get: folded, set() {}, configurable: true });
  }
  const button = make("button", { type: "button", className: "goca-more", textContent: say("more") });
  button.addEventListener("click", () => {
    node.toggleAdvanced();
    button.setAttribute("aria-expanded", String(Boolean(node.showAdvanced)));
  });
  panel.prepend(button);
}

/** The text box of the phrases does not grow with the node: the room is for the viewer. */
export function limitBox(node, name) {
  const widget = widgetOf(node, name);
  if (widget?.options) widget.options.getMaxHeight ??= () => TEXT;
}
