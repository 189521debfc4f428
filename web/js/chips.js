// The words of a prompt as chips: buttons that add a word to the phrases or take it out again.
import { make, rgb } from "./dom.js";
import { say } from "./texts.js";

function describe(word, guess) {
  if (guess) return say("guessed", { name: word.name });
  const pieces = word.tokens.length > 1 && word.pieces.length ? `: ${word.pieces.join("·")}` : "";
  return say(word.tokens.length > 1 ? "tokens" : "token", { name: word.name, numbers: word.tokens.join(", ") }) + pieces;
}

export class Chips {
  /**
   * `toggle(index, to)` is called on a click, with the phrase that a word goes to as in words.js; `span(from, to)` after
   * dragging from a word to another; `look(index)` with the word under the pointer, or -1 for none.
   */
  constructor({ toggle, span, look = (_index) => {} }) {
    this.toggle = toggle;
    this.span = span;
    this.from = -1; // the words that are dragged over
    this.to = -1;
    this.look = look;
    this.shown = "";
    this.current = 0;
    this.building = false;
    this.element = make("div", {
      className: "goca-chips", attributes: { role: "toolbar", "aria-label": say("words") },
    });
    this.element.addEventListener("click", (event) => this.#clicked(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("pointerdown", (event) => this.#drag(event.button || this.fixed ? -1 : this.#at(event)));
    this.element.addEventListener("pointermove", (event) => this.#dragged(event));
    this.element.addEventListener("pointerup", () => this.#dropped());
    for (const type of ["pointerleave", "pointercancel"]) this.element.addEventListener(type, () => this.#drag(-1));
    // Not pointerover: it also fires for chips that appear under a resting pointer, such as after a run.
    for (const type of ["pointermove", "focusin"]) {
      this.element.addEventListener(type, (event) => this.building || look(this.#at(event)));
    }
    for (const type of ["pointerleave", "focusout"]) this.element.addEventListener(type, () => look(-1));
  }

  /**
   * `words`: as in words.js. `owners`: the phrase of each. `guess`: the tokenizer has not run yet. `fixed`: why they
   * cannot be clicked, or an empty string. `empty`: the text to show when there are no words.
   */
  update({ words, owners, colours, guess, fixed, empty }) {
    const named = words.map((word, index) => ({ word, index })).filter(({ word }) => word.keys.length);
    const shown = JSON.stringify([named.map(({ word }) => [word.name, word.tokens, word.pieces, word.content]), guess, empty]);
    if (shown !== this.shown) this.#build(named, guess, empty);
    this.shown = shown;
    this.fixed = fixed;
    for (const chip of this.#chips()) {
      const { line, phrase } = owners[chip.dataset.index];
      const pressed = line >= 0;
      chip.setAttribute("aria-pressed", pressed);
      chip.setAttribute("aria-disabled", Boolean(fixed));
      const about = pressed ? say("owned", { about: chip.dataset.about, phrase }) : chip.dataset.about;
      chip.setAttribute("aria-label", about);
      chip.title = `${about}\n${fixed || say("how")}`;
      if (pressed) chip.style.setProperty("--goca-colour", rgb(colours[line % colours.length]));
    }
  }

  #chips() {
    return [...this.element.querySelectorAll(".goca-chip")];
  }

  #build(named, guess, empty) {
    const focused = this.element.contains(document.activeElement);
    this.current = Math.min(this.current, Math.max(0, named.length - 1));
    const chips = named.map(({ word, index }, place) => make("button", {
      type: "button",
      textContent: word.name,
      tabIndex: place === this.current ? 0 : -1,
      className: `goca-chip${word.content ? "" : " goca-minor"}${guess ? " goca-guess" : ""}`,
      attributes: { "data-index": index, "data-about": describe(word, guess) },
    }));
    this.element.replaceChildren(...(chips.length ? chips : [make("span", { className: "goca-note", textContent: empty })]));
    // Keeping the focus is not a hover: it must not start a preview.
    this.building = true;
    if (focused) chips[this.current]?.focus();
    this.building = false;
  }

  #at(event) {
    const chip = event.target.closest?.(".goca-chip");
    return chip ? Number(chip.dataset.index) : -1;
  }

  #clicked(event) {
    const chip = event.target.closest(".goca-chip");
    if (!chip) return;
    this.#focus(this.#chips().indexOf(chip));
    if (!this.fixed) this.toggle(Number(chip.dataset.index), event.shiftKey ? "last" : event.altKey ? "own" : "next");
  }

  /** Start dragging at a word, or end it without one. */
  #drag(index) {
    this.from = index;
    this.#reach(index);
  }

  #dragged(event) {
    // A finger's events all belong to the word where it came down.
    const over = document.elementFromPoint(event.clientX, event.clientY)?.closest(".goca-chip") ?? null;
    if (this.from >= 0 && this.element.contains(over)) this.#reach(Number(over.getAttribute("data-index")));
  }

  #dropped() {
    const { from, to } = this;
    this.#drag(-1);
    if (from !== to) this.span(from, to);
  }

  /** Mark the words up to one that the pointer has reached. */
  #reach(index) {
    if (index === this.to) return;
    this.to = index;
    const inside = (one) => this.from !== index && one >= Math.min(this.from, index) && one <= Math.max(this.from, index);
    for (const chip of this.#chips()) chip.classList.toggle("goca-over", inside(Number(chip.dataset.index)));
  }

  #key(event) {
    const chips = this.#chips();
    const to = { ArrowRight: this.current + 1, ArrowLeft: this.current - 1, Home: 0, End: chips.length - 1 }[event.key];
    if (to === undefined || !chips.length) return;
    event.preventDefault();
    this.#focus((to + chips.length) % chips.length);
  }

  #focus(place) {
    const chips = this.#chips();
    if (chips[this.current]) chips[this.current].tabIndex = -1;
    this.current = place;
    chips[place].tabIndex = 0;
    chips[place].focus({ preventScroll: true });
  }
}
