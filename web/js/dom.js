// Elements, the pack's style sheet, and panels on nodes. Text from a prompt only ever becomes text content, never markup.
import { app } from "../../../scripts/app.js";

const STYLE = `
.goca-panel { box-sizing: border-box; container-type: size; display: flex; flex-direction: column; gap: 4px; overflow: hidden;
  font: 12px/1.3 sans-serif; color: var(--input-text); }
.goca-panel :focus-visible { outline: 2px solid var(--p-primary-color, #64b5f6); outline-offset: 1px; }
.goca-panel select, .goca-panel button.goca-tool, .goca-panel button.goca-more { height: 22px; padding: 0 4px; font: inherit; color: inherit;
  background: var(--comfy-input-bg); border: 1px solid var(--border-color); border-radius: 4px; }
.goca-panel select { flex: 1 1 64px; min-width: 0; }
.goca-panel select option { color: var(--input-text); background: var(--comfy-menu-bg); }
.goca-panel [hidden] { display: none !important; }
.goca-chips { display: flex; flex-wrap: wrap; align-content: flex-start; gap: 3px; flex: 1 1 auto; min-height: 22px;
  overflow: auto; padding: 2px; }
.goca-with-view > .goca-chips { flex: 0 1 auto; max-height: 40%; }
.goca-with-view > .goca-view { flex: 1 0 250px; }
.goca-chip { flex: none; max-width: 100%; padding: 1px 7px; font: inherit; color: inherit; cursor: pointer;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; user-select: none; background: var(--comfy-input-bg);
  border: 1px solid var(--border-color); border-left: 4px solid var(--border-color); border-radius: 5px; }
.goca-chip[aria-disabled="true"] { cursor: default; }
.goca-chip.goca-minor { opacity: 0.6; }
.goca-chip.goca-guess { border-style: dashed; border-left-style: solid; }
.goca-chip[aria-pressed="true"] { opacity: 1; border-color: var(--goca-colour); font-weight: 600;
  background: color-mix(in srgb, var(--goca-colour) 35%, var(--comfy-input-bg)); }
.goca-chip.goca-over { outline: 2px solid var(--p-primary-color, #64b5f6); outline-offset: -1px; }
.goca-note { color: var(--descrip-text); padding: 2px; }
.goca-more { flex: none; align-self: flex-start; }
body:has(.lg-node) .goca-more { display: none; }
.goca-said { flex: 0 1 auto; min-height: 20px; max-height: 70%; overflow: auto; user-select: text; overflow-wrap: anywhere; }
.goca-said p { margin: 0 0 2px; padding: 2px 6px; border-left: 4px solid; border-radius: 3px; background: var(--comfy-input-bg); }
.goca-said .goca-error { border-color: #e5484d; }
.goca-said .goca-warning { border-color: #f5a623; }
.goca-text { flex: 1 1 0; min-height: 0; box-sizing: border-box; margin: 0; padding: 4px 6px; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 11px/1.35 monospace; user-select: text; background: var(--comfy-input-bg); border-radius: 4px; }
.goca-view { flex: 1 1 0; min-height: 0; display: flex; flex-direction: column; gap: 3px; }
.goca-stage { flex: 1 1 0; min-height: 0; overflow: hidden; position: relative; background: var(--comfy-input-bg); border-radius: 4px; }
.goca-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; cursor: crosshair; }
.goca-stage .goca-note { position: absolute; inset: 0; display: grid; place-content: center; text-align: center; }
.goca-legend { display: flex; flex-wrap: wrap; gap: 0 10px; margin: 0; padding: 0; list-style: none; flex: none;
  max-height: 34px; overflow: auto; }
.goca-legend li { display: flex; align-items: center; gap: 4px; max-width: 100%; }
.goca-legend li.goca-here { font-weight: 600; text-decoration: underline; }
.goca-legend i { flex: none; width: 10px; height: 10px; border: 1px solid var(--border-color); }
.goca-readout { position: absolute; inset: auto 0 0; padding: 1px 6px; color: #fff; background: rgb(0 0 0 / 70%);
  pointer-events: none; overflow-wrap: anywhere; }
.goca-readout:empty { display: none; }
.goca-readout.goca-above { inset: 0 0 auto; }
.goca-tools { flex: none; display: flex; gap: 4px; align-items: center; }
.goca-tools input { flex: 1 1 50px; min-width: 30px; margin: 0; accent-color: var(--p-primary-color, #64b5f6); }
@container (max-height: 200px) { .goca-legend { max-height: 17px; } .goca-view { gap: 2px; } }
`;

/**
 * An element with properties, attributes (in `attributes`) and children.
 * @param {string} tag
 * @param {Record<string, any>} [given]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function make(tag, given = {}, ...children) {
  const { attributes = {}, ...properties } = given;
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function rgb(colour) {
  return `rgb(${colour.join(" ")})`;
}

let styled = false;

/** The pack's own styles, without an element in the page that other packs share. */
function addStyle() {
  if (styled) return;
  styled = true;
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  document.adoptedStyleSheets.push(sheet);
}

/** A panel on a node: at least `height` pixels high, fills the free space, and is not saved with the graph. */
export function addPanel(node, name, height) {
  addStyle();
  // The size never depends on the content, so that loading or running a graph does not resize nodes.
  const element = make("div", { className: "goca-panel", attributes: { "data-name": name } });
  element.style.minHeight = `${height}px`;
  const margin = 8;
  const widget = node.addDOMWidget(name, name, element, { serialize: false, margin, getMinHeight: () => height + 2 * margin });
  // Neither saved nor sent to the server. It must be the last widget, because values are saved by position.
  widget.serialize = false;
  // ComfyUI's side panel lists every widget and gives it its own width, which the panel on the node would then have too.
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true });
  element.addEventListener("wheel", passWheel);
  for (const type of ["pointerdown", "pointermove", "pointerup"]) element.addEventListener(type, passMiddleButton);
  element.addEventListener("keydown", (event) => {
    // The editor has single-key commands, such as deleting the selected node.
    if (!event.ctrlKey && !event.metaKey && !event.altKey && event.key !== "Escape") event.stopPropagation();
  });
  return element;
}

/**
 * Put a node's panel where the Vue renderer still shows that of an earlier node with the same number. After an undo, and on
 * a change to another graph, it keeps the elements of a node and does not ask the new node for its own.
 */
export function settle(node, panel) {
  if (panel.isConnected || !globalThis.LiteGraph?.vueNodesMode || node.graph !== app.canvas?.graph) return;
  const place = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .goca-panel[data-name="${panel.dataset.name}"]`);
  place?.replaceWith(panel);
}

/** Over a panel, the wheel still zooms the graph unless something in the panel scrolls. */
function passWheel(event) {
  const scrolls = event.composedPath().some((part) => part instanceof Element && this.contains(part) &&
    part.scrollHeight > part.clientHeight + 1 && getComputedStyle(part).overflowY === "auto");
  if (scrolls && !event.ctrlKey) event.stopPropagation();
  else if (!globalThis.LiteGraph?.vueNodesMode) {
    event.preventDefault();
    app.canvas?.processMouseWheel?.(event);
  }
}

/** Over a panel, the middle button still drags the graph. */
function passMiddleButton(event) {
  const { canvas } = app;
  if (event.type === "pointermove") {
    if (event.buttons & 4) canvas?.processMouseMove?.(event);
  } else if (event.button === 1) {
    canvas?.[event.type === "pointerdown" ? "processMouseDown" : "processMouseUp"]?.(event);
  }
}

/**
 * Set a property of a node that is saved with the graph but is no step to undo: what the editor compares the graph with to
 * find changes, and what it would go back to, gets it too.
 */
export function keep(node, name, value) {
  node.properties = { ...node.properties, [name]: value };
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  const states = tracker ? [tracker.activeState, ...(tracker.undoQueue ?? []), ...(tracker.redoQueue ?? [])] : [];
  for (const state of states) {
    const graphs = [state, ...(state?.definitions?.subgraphs ?? [])];
    const own = graphs.find((graph) => graph?.id === node.graph?.id) ?? (node.graph === app.rootGraph ? state : null);
    const found = own?.nodes?.find((one) => String(one.id) === String(node.id) && one.type === node.type);
    if (found) found.properties = { ...found.properties, [name]: JSON.parse(JSON.stringify(value)) };
  }
}

/** Change the graph in a single undo step. */
export function change(node, action) {
  app.canvas?.emitBeforeChange?.();
  action();
  app.canvas?.emitAfterChange?.();
  node.setDirtyCanvas?.(true, true);
}
