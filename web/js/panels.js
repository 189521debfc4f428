// The panels on the pack's nodes: word chips, viewers and the text output of the last run.
import { Chips } from "./chips.js";
import { addPanel, change, keep } from "./dom.js";
import { inputNode, isWired, MASKS, overlaysOf, PHOTO, phrasedOf, promptsOf, textOf, widgetOf } from "./graph.js";
import { say } from "./texts.js";
import { Text } from "./text.js";
import { Viewer } from "./viewer.js";
import { between, estimate, including, isDynamic, owners, spanning, unknown, without } from "./words.js";

const KEPT = "goca_view"; // the node property that holds the viewer's settings

const panels = new WeakMap();
const ran = new Map(); // the phrases that masks were made from, by the name of their first file
const MANY = 200;

export function panelOf(node) {
  return panels.get(node);
}

/** Whether words found by a run still belong to the text of a prompt node. */
function fits(found, typed, prompt) {
  const text = textOf(prompt);
  return text === null || text === found.text || (text === typed && isDynamic(text));
}

/** Reads and writes the settings of a viewer, which are saved with the graph. */
function settings(node, defaults) {
  return {
    read: (name) => node.properties?.[KEPT]?.[name] ?? defaults[name],
    write: (name, value) => keep(node, KEPT, { ...node.properties?.[KEPT], [name]: value }),
  };
}

function toggled(words, text, index, to) {
  const chosen = owners(words, text)[index].line >= 0;
  return chosen ? without(words, text, index) : including(words, text, index, to);
}

/** Why the phrases of a node cannot be changed by clicks, or an empty string. */
function fixed(node) {
  return isWired(node, "phrases") ? say("wired") : "";
}

function phrasesOf(node) {
  return String(widgetOf(node, "phrases")?.value ?? "");
}

/** The phrases of a node that are not in its prompt, before a run finds them. `words`: those of the prompt. */
function missing(node, words) {
  const background = String(widgetOf(node, "background")?.value ?? "");
  const texts = [["phrases", phrasesOf(node)], ["background", background.trim() === "auto" ? "" : background]];
  const free = texts.filter(([name]) => !isWired(node, name));
  return words.length ? free.flatMap(([, text]) => unknown(words, text)) : [];
}

function setPhrases(node, text) {
  widgetOf(node, "phrases").value = text;
}

/** Remembers the words of a prompt. */
class Known {
  found = null; // the words of the last run
  typed = null; // the text they were found in

  constructor(node, tables) {
    this.node = node;
    this.tables = tables;
    panels.set(node, this);
  }

  executed(output) {
    const [found] = output.goca_words ?? [];
    if (!found) return;
    this.found = found;
    this.typed = textOf(this.node);
  }

  /** The words of the prompt, and whether they are only estimated. */
  words() {
    if (this.found && fits(this.found, this.typed, this.node)) return { words: this.found.words, guess: false };
    return { words: estimate(textOf(this.node) ?? "", new Set(this.tables.stop)), guess: true };
  }

  refresh() {}
}

/** The words of a prompt, as text. */
export class Words extends Known {
  constructor(node, tables) {
    super(node, tables);
    this.text = new Text(node);
    this.panel = this.text.panel;
  }

  executed(output) {
    super.executed(output);
    this.text.executed(output);
  }
}

/** The text output of a node. */
export class TextOutput extends Text {
  constructor(node) {
    super(node);
    panels.set(node, this);
  }

  refresh() {}
}

/** Chips under a prompt; they change the phrases of the nodes that use its words. */
export class Prompt extends Known {
  constructor(node, tables) {
    super(node, tables);
    this.chips = new Chips({
      toggle: (index, to) => this.#change([index], (words, text) => toggled(words, text, index, to)),
      span: (from, to) => this.#change(between(this.words().words, from, to), (words, text) => spanning(words, text, from, to)),
    });
    this.panel = addPanel(node, "goca_words", 30);
    this.panel.append(this.chips.element);
  }

  refresh() {
    const { words, guess } = this.words();
    const targets = phrasedOf(this.node);
    const found = targets.map((node) => owners(words, phrasesOf(node)));
    const free = targets.some((node) => !fixed(node));
    this.chips.update({
      words,
      guess,
      owners: words.map((_, i) => found.find((one) => one[i].line >= 0)?.[i] ?? { line: -1, phrase: "" }),
      colours: this.tables.colours,
      fixed: free ? "" : targets.map(fixed)[0] ?? say("unused"),
      empty: textOf(this.node) === null ? say("laterWords") : say("none"),
    });
  }

  /** Change the phrases of the nodes that use these words. If only some of them have the words, it takes them from those. */
  #change(indices, changed) {
    const { words } = this.words();
    const targets = phrasedOf(this.node).filter((node) => !fixed(node));
    const has = (node) => {
      const found = owners(words, phrasesOf(node));
      return indices.every((index) => found[index].line >= 0);
    };
    change(this.node, () => {
      for (const node of targets.some(has) ? targets.filter(has) : targets) setPhrases(node, changed(words, phrasesOf(node)));
    });
  }
}

/** Chips under phrases; they change those of their own node. */
export class Phrases {
  /** @type {import("./said.js").Said} */
  said;

  constructor(node, tables, { look = (_index) => {}, height = 30, empty = say("unwired") } = {}) {
    this.node = node;
    this.tables = tables;
    this.empty = empty;
    panels.set(node, this);
    this.chips = new Chips({
      toggle: (index, to) => this.change((words, text) => toggled(words, text, index, to)),
      span: (from, to) => this.change((words, text) => spanning(words, text, from, to)),
      look,
    });
    this.panel = addPanel(node, "goca_phrases", height);
    this.panel.append(this.chips.element);
  }

  /** The words of the prompt, and whether they are only estimated. */
  words() {
    const [prompt] = promptsOf(this.node);
    if (prompt === this.node) return { words: estimate(textOf(prompt) ?? "", new Set(this.tables.stop)), guess: true };
    return prompt ? (panelOf(prompt) ?? new Known(prompt, this.tables)).words() : { words: [], guess: true };
  }

  executed() {}

  refresh() {
    const { words, guess } = this.words();
    this.chips.update({
      words,
      guess,
      owners: owners(words, phrasesOf(this.node)),
      colours: this.tables.colours,
      fixed: fixed(this.node),
      empty: this.empty,
    });
    this.said.warn(this.warnings(words, guess));
  }

  /** What is wrong with the phrases. The words of a dynamic prompt are known only after a run. */
  warnings(words, guess) {
    const uncertain = guess && promptsOf(this.node).some((prompt) => isDynamic(textOf(prompt) ?? ""));
    const names = uncertain ? [] : missing(this.node, words);
    return names.length ? [say("unknown", { names: names.join(", ") })] : [];
  }

  /** @param {(words: any[], text: string) => string} changed */
  change(changed) {
    const { words } = this.words();
    change(this.node, () => setPhrases(this.node, changed(words, phrasesOf(this.node))));
  }
}

/** Chips and a viewer under the masks. */
export class Masks extends Phrases {
  view = null; // of the last run, like the mask areas, the texts of its prompts and its phrases
  table = null;
  typed = new Map();
  phrases = "";

  constructor(node, tables) {
    super(node, tables, {
      look: (index) => this.viewer.preview(index < 0 ? "" : this.#mapOf(index)),
      height: 320,
      empty: say("laterPhrases"),
    });
    this.viewer = new Viewer({
      tables,
      settings: settings(node, { opacity: 0.55 }),
      empty: say("laterMasks"),
      take: (name) => this.#take(name),
    });
    this.panel.classList.add("goca-with-view");
    this.panel.append(this.viewer.element);
  }

  executed(output) {
    const [view] = output.goca_view ?? [];
    if (!view) return;
    this.view = view;
    this.table = output.goca_masks?.[0];
    this.typed = new Map(promptsOf(this.node).map((prompt) => [prompt, textOf(prompt)]));
    this.phrases = this.#phrasesOf(view);
    this.look();
  }

  /** The name of the heat map of a word. */
  #mapOf(index) {
    const word = this.words().words[index];
    return word.map ?? word.name;
  }

  /** As a click on this word does, or dragging over words that have one map together. A bare word ranks for all of its kind. */
  #take(name) {
    const { words } = this.words();
    const together = words.flatMap((word, i) => (word.map === name ? [i] : []));
    const index = together[0] ?? words.findIndex((word) => word.name === name || word.text === name);
    if (index < 0 || fixed(this.node)) return;
    if (together.length > 1) this.change((all, text) => spanning(all, text, index, together.at(-1)));
    else this.change((all, text) => toggled(all, text, index, "next"));
  }

  /** What the phrases were when these masks were made. After an undo the new node gets the output of the earlier one. */
  #phrasesOf(view) {
    const name = view.masks.files[0].filename;
    if (!ran.has(name)) ran.set(name, phrasesOf(this.node));
    if (ran.size > MANY) ran.delete(ran.keys().next().value);
    return ran.get(name);
  }

  /** Show the last run, over the image of an Overlay node that shows the same masks, if there is one. */
  look() {
    const { masks } = this.view;
    const views = overlaysOf(this.node).map((overlay) => panelOf(overlay)?.view);
    const same = views.find((view) => view?.masks?.digest === masks.digest && view.picture.files.length === masks.files.length);
    this.viewer.open(same ? { ...this.view, picture: same.picture } : this.view, this.table);
  }

  refresh() {
    super.refresh();
    const stale = this.#stale && !this.said.error;
    this.viewer.note(stale ? say("stale") : "");
    this.viewer.refresh();
  }

  /** Whether the masks are those of other phrases. */
  get #stale() {
    return this.view && phrasesOf(this.node) !== this.phrases && !fixed(this.node);
  }

  /** Masks without a pixel too, and phrases that were skipped as absent. */
  warnings(words, guess) {
    const { phrases = [], area = [], absent = [] } = this.table && !this.#stale ? this.table : {};
    const found = {
      absent: phrases.filter((_, k) => absent.some((row) => row[k])),
      empty: phrases.filter((_, k) => area.some((row, image) => row[k] === 0 && !absent[image]?.[k])),
    };
    const more = Object.entries(found).filter(([, names]) => names.length);
    return [...super.warnings(words, guess), ...more.map(([text, names]) => say(text, { names: names.join(", ") }))];
  }

  words() {
    const prompts = promptsOf(this.node);
    const own = this.view?.words;
    // With several prompts, the recording tells which one it belongs to.
    if (own && (!prompts.length || prompts.some((prompt) => fits(own, this.typed.get(prompt), prompt)))) {
      return { words: own.words, guess: false };
    }
    return super.words();
  }
}

/** A viewer in place of the image preview. */
export class Overlay {
  view = null;

  constructor(node, tables) {
    this.node = node;
    panels.set(node, this);
    this.viewer = new Viewer({ tables, settings: this.#settings(), empty: say("laterOverlay") });
    this.panel = addPanel(node, "goca_overlay", 180);
    this.panel.append(this.viewer.element);
  }

  executed(output) {
    const [view] = output.goca_view ?? [];
    if (!view) return;
    this.view = view;
    // The viewer replaces ComfyUI's own preview of the same image.
    this.node.hideOutputImages = true;
    this.viewer.open(view);
    const masks = inputNode(this.node, "source");
    if ([MASKS, PHOTO].includes(masks?.comfyClass) && panelOf(masks)?.view) panelOf(masks).look();
  }

  refresh() {
    this.viewer.refresh();
  }

  /** The slider sets the node's own opacity, so the viewer shows what the next run will output. */
  #settings() {
    const { node } = this;
    const kept = settings(node, {});
    const own = () => (isWired(node, "opacity") ? null : widgetOf(node, "opacity"));
    return {
      read: (name) => (name === "opacity" ? widgetOf(node, "opacity")?.value ?? 0.55 : kept.read(name)),
      write: (name, value) => {
        if (name !== "opacity") kept.write(name, value);
        else if (own()) change(node, () => { own().value = value; });
      },
    };
  }
}
