// Which nodes belong together: the prompts that a mask node can ask for, the mask nodes of a prompt, the picture of masks.

export const PROMPT = "GOCA_EncodePrompt";
export const WORDS = "GOCA_Words";
export const MASKS = "GOCA_MaskFromTokens";
export const OVERLAY = "GOCA_Overlay";

const RECORD = ["GOCA_SCORES", "GOCA_MAPS", "GOCA_ATTENTION"];
const PROMPTS = ["CONDITIONING", "GUIDER"];

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Whether an input, also one that a widget stands for, is wired. */
export function isWired(node, name) {
  return node.inputs?.find((input) => input.name === name)?.link != null;
}

/** The node whose output is wired into an input, by the input's name; looks into subgraphs, not out of them. */
export function inputNode(node, name) {
  return origin(node, node.inputs?.findIndex((input) => input.name === name) ?? -1);
}

function origin(node, slot) {
  let link = slot < 0 || !node.graph ? null : node.getInputLink?.(slot);
  let found = link && node.getInputNode(slot);
  while (found?.isSubgraphNode?.()) {
    const inner = found.resolveSubgraphOutputLink?.(link.origin_slot);
    [found, link] = [inner?.outputNode, inner?.link];
  }
  return found ?? null;
}

/** Nodes wired into inputs of these types; what is called negative is another prompt. */
function upstream(node, types) {
  const fits = (type) => type === "*" || String(type).split(",").some((one) => types.includes(one));
  const slots = (node.inputs ?? []).map((input, slot) => (fits(input.type) && !/neg/i.test(input.name) ? slot : -1));
  return slots.filter((slot) => slot >= 0).map((slot) => origin(node, slot)).filter(Boolean);
}

function follow(node, stage, found, seen) {
  const key = `${stage} ${node.graph?.id} ${node.id}`;
  if (seen.has(key)) return;
  seen.add(key);
  if (stage === "prompt" && node.comfyClass === PROMPT) {
    found.push(node);
    return;
  }
  const prompts = upstream(node, PROMPTS);
  if (stage === "prompt") prompts.forEach((next) => follow(next, "prompt", found, seen));
  else if (stage === "record" && upstream(node, RECORD).length) {
    upstream(node, RECORD).forEach((next) => follow(next, "record", found, seen));
  } else if (prompts.length) prompts.forEach((next) => follow(next, "prompt", found, seen));
  else upstream(node, ["LATENT"]).forEach((next) => follow(next, "latent", found, seen));
}

/** The nodes whose prompt the phrases of a mask node are words of. */
export function promptsOf(masks) {
  const words = inputNode(masks, "words");
  if (words) return words.comfyClass === WORDS ? [words] : [];
  const source = inputNode(masks, "source");
  const found = [];
  if (source) follow(source, "record", found, new Set());
  return found;
}

/** The mask nodes, in the same graph, whose phrases are words of this prompt. */
export function masksOf(prompt) {
  const nodes = prompt.graph?.nodes ?? [];
  return nodes.filter((node) => node.comfyClass === MASKS && promptsOf(node).includes(prompt));
}

/** The text of a prompt node, also when another node gives it; null when that cannot be seen before a run. */
export function textOf(prompt) {
  if (!isWired(prompt, "text")) return String(widgetOf(prompt, "text")?.value ?? "");
  const texts = (inputNode(prompt, "text")?.widgets ?? []).filter((widget) => typeof widget.value === "string" && widget.serialize !== false);
  return texts.length === 1 ? texts[0].value : null;
}

/** The overlay nodes that show the masks of a mask node. */
export function overlaysOf(masks) {
  const links = masks.outputs?.[0]?.links ?? [];
  const targets = links.map((id) => masks.graph?.getLink?.(id)).map((link) => link && masks.graph.getNodeById(link.target_id));
  return targets.filter((node) => node?.comfyClass === OVERLAY);
}
