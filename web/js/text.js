// Shows what a node has to say under it, such as what was recorded.
import { app } from "../../../scripts/app.js";

const NODES = [
  "GOCA_Words", "GOCA_CollectAttention", "GOCA_SegmentImage", "GOCA_SaveAttention", "GOCA_RegionalPrompt", "GOCA_CollectMasks",
];

function show(node, text) {
  let widget = node.widgets?.find((candidate) => candidate.name === "goca_text");
  if (!widget) {
    const element = document.createElement("pre");
    element.setAttribute("aria-live", "polite");
    Object.assign(element.style, {
      margin: "0", overflow: "auto", whiteSpace: "pre-wrap", font: "11px monospace", userSelect: "text",
      color: "var(--input-text)", background: "var(--comfy-input-bg)", padding: "4px 6px", borderRadius: "4px",
    });
    // Not part of the graph: neither saved nor sent, so that shared files stay as they are.
    widget = node.addDOMWidget("goca_text", "goca_text", element, { serialize: false, getMinHeight: () => 60 });
    widget.serialize = false;
  }
  // Words of a prompt are shown as they are; textContent never reads them as markup.
  widget.element.textContent = text;
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "goca.text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    /** @type {any} */ // the host's types know no onExecuted
    const { prototype } = nodeType;
    const before = prototype.onExecuted;
    prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      const text = output?.text?.join("\n");
      if (text) show(this, text);
    };
  },
});
