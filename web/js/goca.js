// Adds the panels to the pack's nodes, through ComfyUI's extension hooks.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { foldAdvanced, limitBox, nameBoxes } from "./compact.js";
import { settle } from "./dom.js";
import { panelOf, Masks, Overlay, Phrases, Prompt, TextOutput, Words } from "./panels.js";
import { MASKS, OVERLAY, PASS, PHOTO, PLAIN, PROMPT, widgetOf, WORDS } from "./graph.js";
import { Failed, Said } from "./said.js";

const SAID = ["CollectAttention", "SegmentImage", "SaveAttention", "RegionalPrompt", "CollectMasks"].map((name) => `GOCA_${name}`);
const FACES = {
  ...Object.fromEntries(SAID.map((name) => [name, TextOutput])),
  [PROMPT]: Prompt, [WORDS]: Words, [MASKS]: Masks, [PHOTO]: Masks, [PASS]: Phrases, [OVERLAY]: Overlay,
};
// Widgets that affect the panels, and the extra height of new nodes.
const WATCHED = ["text", "phrases", "background", "labels", "opacity"];
const ROOM = { [PROMPT]: 24, [PASS]: 24, [MASKS]: 60, [PHOTO]: 60, [OVERLAY]: 160 };

let tables = { colours: [[128, 128, 128]], light: [0.3, 0.6, 0.1], contrast: 0.3, maps: {}, stop: [] };
let waiting = false;
const failed = new Set(); // what shows the error of a node since the last run

function allNodes() {
  const root = app.rootGraph ?? app.graph;
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes ?? []);
}

/** Update all panels, once for several changes in a row: the words of a prompt appear on several nodes. */
function refresh() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    for (const node of allNodes()) {
      const face = panelOf(node);
      if (face?.panel) settle(node, face.panel);
      face?.refresh();
    }
  });
}

/** Call `after` after every call of a method. */
function follow(owner, method, after) {
  const before = owner[method];
  owner[method] = function (...given) {
    const result = before?.apply(this, given);
    after(this, ...given);
    return result;
  };
}

function watch(node) {
  for (const name of WATCHED) {
    const widget = widgetOf(node, name);
    if (widget) follow(widget, "callback", refresh);
  }
}

function executed(node, output) {
  panelOf(node)?.executed(output ?? {});
  refresh();
}

/** The node for a key of ComfyUI's node outputs: its id, preceded by the id of its subgraph if it is in one. */
function nodeOf(key) {
  const root = app.rootGraph ?? app.graph;
  const [id, subgraph] = String(key).split(":").reverse();
  return (subgraph ? root.subgraphs?.get(subgraph) : root)?.getNodeById(Number(id));
}

/** The node of an error or a progress message: its id, preceded by the ids of the subgraph nodes around it. */
function nodeAt(path) {
  let [graph, node] = [app.rootGraph ?? app.graph, null];
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return node;
}

/** Show the error of a run on its node; ComfyUI's own message has it under its details. */
function fail({ node_id: path, node_type: type, exception_message: message }) {
  const node = nodeAt(path);
  // The graph that failed may be in another tab.
  if (!type?.startsWith("GOCA_") || node?.comfyClass !== type) return;
  const face = panelOf(node)?.said ? panelOf(node) : new Failed(node);
  face.said.fail(String(message ?? "").trim());
  failed.add(face);
  refresh();
}

function forget() {
  for (const face of failed) {
    face.said.fail("");
    face.remove?.();
  }
  failed.clear();
}

app.registerExtension({
  name: "goca.panels",

  setup() {
    api.addEventListener("execution_start", forget);
    api.addEventListener("execution_error", ({ detail }) => fail(detail));
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!FACES[nodeData.name]) return;
    tables = nodeData.input?.required?.phrases?.[1]?.goca ?? tables;
    follow(nodeType.prototype, "onExecuted", executed);
    follow(nodeType.prototype, "onConnectionsChange", refresh);
    nameBoxes(nodeType);
    if (nodeData.name !== OVERLAY) return;
    // The classic renderer draws the image preview of a node here.
    const draw = nodeType.prototype.onDrawBackground;
    nodeType.prototype.onDrawBackground = function (...given) {
      if (!panelOf(this)?.view) draw?.apply(this, given);
    };
  },

  nodeCreated(node) {
    const Face = FACES[node.comfyClass];
    if (Face || node.comfyClass === PLAIN) watch(node);
    if (!Face) return;
    const face = new Face(node, tables);
    const { panel } = face;
    face.said = new Said(panel);
    if (Face === Masks) {
      foldAdvanced(node, panel);
      limitBox(node, "phrases");
    }
    if (!panel) return;
    // Connections of other nodes may have changed in the meantime.
    panel.addEventListener("pointerenter", refresh);
    panel.addEventListener("focusin", refresh);
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height + (ROOM[node.comfyClass] ?? 0))]);
    refresh();
  },

  loadedGraphNode(node) {
    // The background was a text box of several lines in older graphs; editing it as one line would join their words.
    const background = FACES[node.comfyClass] && widgetOf(node, "background");
    if (background?.value?.includes?.("\n")) background.value = background.value.trim().replace(/\s*\n\s*/g, ", ");
    refresh();
  },

  afterConfigureGraph: refresh,

  /** The editor returned to a graph that has run before. */
  onNodeOutputsUpdated(outputs) {
    const found = Object.entries(outputs ?? {}).map(([key, output]) => [nodeOf(key), output]);
    // In the order of execution: overlays after masks.
    for (const type of Object.keys(FACES)) {
      for (const [node, output] of found) if (node?.comfyClass === type) executed(node, output);
    }
  },
});
