// Shows what a node has to say under it: the words of a prompt, the areas of masks.
import { app } from "/scripts/app.js";

const READERS = {
  GOCA_EncodePrompt: (output) => output?.text?.join("\n"),
  GOCA_Words: (output) => output?.text?.join("\n"),
  GOCA_CollectAttention: (output) => output?.text?.join("\n"),
  GOCA_SegmentImage: (output) => output?.text?.join("\n"),
  GOCA_SaveAttention: (output) => output?.text?.join("\n"),
  GOCA_RegionalPrompt: (output) => output?.text?.join("\n"),
  GOCA_MaskFromTokens: (output) => output?.goca_masks?.map(areas).join("\n"),
};

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function areas(table) {
  const rows = table.phrases.map((phrase, k) => `${phrase}: ${table.area.map((row) => percent(row[k])).join(", ")}`);
  const behind = table.behind?.length ? ` (${table.behind.join(", ")})` : "";
  return [...rows, `background${behind}: ${table.background.map(percent).join(", ")}`].join("\n");
}

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
    const read = READERS[nodeData.name];
    if (!read) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      const text = read(output);
      if (text) show(this, text);
    };
  },
});
