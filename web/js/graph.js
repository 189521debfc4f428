// Which nodes belong together: the prompts whose words a node can use, the nodes that use a prompt, the overlays of masks.

export const PROMPT = "GOCA_EncodePrompt";
export const PLAIN = "CLIPTextEncode"; // ComfyUI's own, whose words are known too
export const WORDS = "GOCA_Words";
export const MASKS = "GOCA_MaskFromTokens";
export const PHOTO = "GOCA_MaskFromImage"; // has its prompt itself
export const PASS = "GOCA_RegionalPass";
export const OVERLAY = "GOCA_Overlay";

const RECORD = ["GOCA_SCORES", "GOCA_MAPS", "GOCA_ATTENTION", "GOCA_RECORDER"];
const PROMPTS = ["CONDITIONING", "GUIDER"];
const PHRASED = [MASKS, PASS];

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Whether an input, or the input of a widget, is connected. */
export function isWired(node, name) {
  return node.inputs?.find((input) => input.name === name)?.link != null;
}

/** The node connected to an input, by the name of the input. Goes into subgraphs, but not out of them. */
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

/** The nodes connected to inputs of these types, except negative prompts. */
function upstream(node, types) {
  const fits = (type) => type === "*" || String(type).split(",").some((one) => types.includes(one));
  const slots = (node.inputs ?? []).map((input, slot) => (fits(input.type) && !/neg/i.test(input.name) ? slot : -1));
  return slots.filter((slot) => slot >= 0).map((slot) => origin(node, slot)).filter(Boolean);
}

function follow(node, stage, found, seen) {
  const key = `${stage} ${node.graph?.id} ${node.id}`;
  if (seen.has(key)) return;
  seen.add(key);
  if (stage === "prompt" && [PROMPT, PLAIN].includes(node.comfyClass)) {
    found.push(node);
    return;
  }
  const prompts = upstream(node, PROMPTS);
  if (stage === "prompt") prompts.forEach((next) => follow(next, "prompt", found, seen));
  else if (stage === "record" && upstream(node, RECORD).length) {
    upstream(node, RECORD).forEach((next) => follow(next, "record", found, seen));
    // A recorder does not lead to the sampler, but the LATENT beside it does.
    upstream(node, ["LATENT"]).forEach((next) => follow(next, "latent", found, seen));
  } else if (prompts.length) prompts.forEach((next) => follow(next, "prompt", found, seen));
  else upstream(node, ["LATENT"]).forEach((next) => follow(next, "latent", found, seen));
}

/** The nodes that an output is connected to. */
function targets(node, slot) {
  const links = (node.outputs?.[slot]?.links ?? []).map((id) => node.graph?.getLink?.(id));
  return links.map((link) => link && node.graph.getNodeById(link.target_id)).filter(Boolean);
}

/** The samplers and guiders that a model reaches through other nodes: nodes that also take a prompt. */
function samplersOf(node, seen = new Set()) {
  const slots = (node.outputs ?? []).map((output, slot) => (["MODEL", "*"].includes(output.type) ? slot : -1));
  return slots.filter((slot) => slot >= 0).flatMap((slot) => targets(node, slot)).flatMap((next) => {
    if (seen.has(next)) return [];
    seen.add(next);
    return upstream(next, PROMPTS).length ? [next] : samplersOf(next, seen);
  });
}

/** The prompt nodes whose words the phrases of a node refer to. */
export function promptsOf(node) {
  if (node.comfyClass === PHOTO) return [node];
  const words = inputNode(node, "words");
  if (words) return words.comfyClass === WORDS ? [words] : [];
  const [found, seen] = [[], new Set()];
  if (node.comfyClass === PASS) samplersOf(node).forEach((sampler) => follow(sampler, "sampler", found, seen));
  else follow(node, "record", found, seen);
  return found;
}

/** The nodes in the same graph whose phrases refer to this prompt. */
export function phrasedOf(prompt) {
  const nodes = prompt.graph?.nodes ?? [];
  return nodes.filter((node) => PHRASED.includes(node.comfyClass) && promptsOf(node).includes(prompt));
}

/** The text of a prompt node, even if another node supplies it; null if it is unknown before a run. */
export function textOf(prompt) {
  if (!isWired(prompt, "text")) return String(widgetOf(prompt, "text")?.value ?? "");
  const texts = (inputNode(prompt, "text")?.widgets ?? []).filter((widget) => typeof widget.value === "string" && widget.serialize !== false);
  return texts.length === 1 ? texts[0].value : null;
}

/** The overlay nodes that show the masks of a mask node. */
export function overlaysOf(masks) {
  return targets(masks, 0).filter((node) => node.comfyClass === OVERLAY);
}
