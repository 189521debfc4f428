// Hangs the pack's faces on its nodes, through the host's extension hooks.
import { app } from "../../../scripts/app.js";
import { faceOf, Masks, Overlay, Phrases, Prompt, Said, Words } from "./faces.js";
import { MASKS, OVERLAY, PASS, PROMPT, widgetOf, WORDS } from "./graph.js";

const SAID = ["CollectAttention", "SegmentImage", "SaveAttention", "RegionalPrompt", "CollectMasks"].map((name) => `GOCA_${name}`);
const FACES = {
  ...Object.fromEntries(SAID.map((name) => [name, Said])),
  [PROMPT]: Prompt, [WORDS]: Words, [MASKS]: Masks, [PASS]: Phrases, [OVERLAY]: Overlay,
};
// Widgets that change what is shown, and what a new node is given beyond its least height.
const WATCHED = ["text", "phrases", "labels", "opacity"];
const ROOM = { [PROMPT]: 24, [PASS]: 24, [MASKS]: 220, [OVERLAY]: 160 };

let tables = { colours: [[128, 128, 128]], maps: {}, stop: [] };
let waiting = false;

function allNodes() {
  const root = app.rootGraph ?? app.graph;
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes ?? []);
}

/** Bring all faces up to date, once for however many changes: a prompt is shown on several nodes. */
function refresh() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    for (const node of allNodes()) faceOf(node)?.refresh();
  });
}

/** Call `after` whenever a method of an object was called. */
function follow(owner, method, after) {
  const before = owner[method];
  owner[method] = function (...given) {
    const result = before?.apply(this, given);
    after(this, ...given);
    return result;
  };
}

function executed(node, output) {
  faceOf(node)?.executed(output ?? {});
  refresh();
}

/** The node of a key of the host's outputs: its number, after the number of its subgraph if it is in one. */
function nodeOf(key) {
  const root = app.rootGraph ?? app.graph;
  const [id, subgraph] = String(key).split(":").reverse();
  return (subgraph ? root.subgraphs?.get(subgraph) : root)?.getNodeById(Number(id));
}

app.registerExtension({
  name: "goca.faces",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!FACES[nodeData.name]) return;
    tables = nodeData.input?.required?.phrases?.[1]?.goca ?? tables;
    follow(nodeType.prototype, "onExecuted", executed);
    follow(nodeType.prototype, "onConnectionsChange", refresh);
    if (nodeData.name !== OVERLAY) return;
    // In the classic renderer the host draws a node's pictures here.
    const draw = nodeType.prototype.onDrawBackground;
    nodeType.prototype.onDrawBackground = function (...given) {
      if (!faceOf(this)?.view) draw?.apply(this, given);
    };
  },

  nodeCreated(node) {
    const Face = FACES[node.comfyClass];
    if (!Face) return;
    const { panel } = new Face(node, tables);
    for (const name of WATCHED) {
      const widget = widgetOf(node, name);
      if (widget) follow(widget, "callback", refresh);
    }
    if (!panel) return;
    // What other nodes are wired to may have changed unseen.
    panel.addEventListener("pointerenter", refresh);
    panel.addEventListener("focusin", refresh);
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height + (ROOM[node.comfyClass] ?? 0))]);
    refresh();
  },

  loadedGraphNode: refresh,
  afterConfigureGraph: refresh,

  /** The editor comes back to a graph that ran before. */
  onNodeOutputsUpdated(outputs) {
    const found = Object.entries(outputs ?? {}).map(([key, output]) => [nodeOf(key), output]);
    // In the order in which they ran: overlays after masks.
    for (const type of Object.keys(FACES)) {
      for (const [node, output] of found) if (node?.comfyClass === type) executed(node, output);
    }
  },
});
