// Words and phrases as text: which words a prompt has, which of them a phrase means, and how clicks change the phrases.
// Independent of the page. Follows the same rules as goca_core/words/, which finds the words and tokens of a run.

const ALONE = "[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}\\p{Script=Lao}" +
  "\\p{Script=Myanmar}\\p{Script=Khmer}々〇]";
const LETTER = "[\\p{L}\\p{N}\\p{M}]";
// What nobody sees: the soft hyphen, joiners, marks of direction and variation selectors. It belongs to what is before it.
const UNSEEN = "[\\u00AD\\u034F\\u061C\\u180B-\\u180F\\u200C-\\u200F\\u202A-\\u202E\\u2060-\\u206F\\uFE00-\\uFE0F" +
  "\\uFEFF\\u{E0100}-\\u{E01EF}]";
const WORDS = new RegExp([
  "(?<embedding>embedding:[^\\s<\\[,]+)",
  `(?<ending>['’](?:s|t|re|ve|m|d|ll)(?!(?!${UNSEEN})${LETTER})${UNSEEN}*)`,
  "(?<emoji>(?![©®™])\\p{Extended_Pictographic}(?:[\\uFE0F\\p{Emoji_Modifier}]|\\u200D\\p{Extended_Pictographic})*"
    + `${UNSEEN}*)`,
  `(?<sign>${ALONE}\\p{M}*${UNSEEN}*)`,
  `(?<run>(?!${UNSEEN})(?:(?!${ALONE})${LETTER}|${UNSEEN})+)`,
  `(?<other>(?!${UNSEEN})[^\\s\\u200B]${UNSEEN}*)`,
].join("|"), "giu");
const EMBEDDING = "embedding:";
const HIDDEN = new RegExp(UNSEEN, "gu");
const WEIGHT = /(?<!\\):\s*[-+]?(?:nan|inf|[\d.]+(?:e[-+]?\d+)?)\s*(?=\))/gi;

/** The spelling under which two words count as equal. */
export function fold(text) {
  const composed = text.replace(HIDDEN, "").replaceAll("\u200B", " ").normalize("NFC");
  return composed.toUpperCase().toLowerCase().replaceAll("ς", "σ").normalize("NFC").replaceAll("’", "'");
}

/** The folded words of a text, without punctuation. */
function keysOf(text) {
  const found = [...text.replace(/^embedding:/i, "embedding ").matchAll(WORDS)];
  return found.filter((match) => !match.groups.other).map((match) => fold(match[0]));
}

/** The text of a widget without comments, weights and escapes. */
function plain(text) {
  return text
    .replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, "")
    .replace(WEIGHT, "")
    .replace(/(?<!\\)[()]/g, " ")
    .replace(/\\([()])/g, "$1");
}

/** Estimates the words of a prompt before the tokenizer has run. `stop`: words that are not content words. */
export function estimate(text, stop) {
  const words = [...plain(text).matchAll(WORDS)].map((match) => {
    const own = match[0];
    const keys = match.groups.other ? [] : [keysOf(own)];
    if (match.groups.embedding) keys.push(keysOf(own.slice(EMBEDDING.length)));
    return { text: own, name: own, keys, tokens: [], pieces: [], content: keys.length > 0 && !stop.has(fold(own)) };
  });
  const count = new Map();
  for (const word of words) count.set(fold(word.text), (count.get(fold(word.text)) ?? 0) + 1);
  const seen = new Map();
  for (const word of words) {
    const key = fold(word.text);
    seen.set(key, (seen.get(key) ?? 0) + 1);
    word.name = count.get(key) > 1 ? `${word.text}#${seen.get(key)}` : word.text;
  }
  return words;
}

/** Whether the editor may send another text than the widget shows: it resolves random choices and drops comments. */
export function isDynamic(text) {
  return /[{}]|\/\/|\/\*/.test(text);
}

/** The lines of a phrase list, each as its pooled parts. */
function parse(text) {
  const lines = text.split("\n").map((line) => line.split(/(?<!\\),/).map((part) => part.trim()).filter(Boolean));
  return lines.filter((parts) => parts.length);
}

function join(lines) {
  return lines.filter((parts) => parts.length).map((parts) => parts.join(", ")).join("\n");
}

function runAt(words, start, keys) {
  const run = [];
  let rest = keys;
  for (let i = start; rest.length; i += 1) {
    if (i >= words.length) return [];
    const own = words[i].keys.find((key) => key.length <= rest.length && key.every((part, k) => part === rest[k]));
    if (own) {
      run.push(i);
      rest = rest.slice(own.length);
    } else if (words[i].keys.length || !run.length) return [];
  }
  return run;
}

function runsOf(words, keys) {
  const runs = [];
  for (let start = 0; keys.length && start < words.length; start += 1) {
    const run = runAt(words, start, keys);
    if (run.length) {
      runs.push(run);
      start = run.at(-1);
    }
  }
  return runs;
}

function squeeze(text) {
  return fold(text).replace(/\s/g, "");
}

/** The indices of the words that a phrase refers to: all occurrences, or only the one numbered with `#`. */
export function meant(words, phrase) {
  const text = phrase.replaceAll("\\,", ",");
  const runs = numberedRuns(words, text);
  // Weights are words only to language models.
  return (runs.length ? runs : numberedRuns(words, text.replace(WEIGHT, "").replace(/[()]/g, " "))).flat();
}

function numberedRuns(words, text) {
  let runs = runsOf(words, keysOf(text));
  const numbered = /^(.*\S)\s*#(\d+)$/s.exec(text.trim());
  if (numbered) {
    // The prompt itself may contain "room #2".
    const said = (run) => words.slice(run[0], run.at(-1) + 1).map((word) => word.text).join("");
    const typed = runs.filter((run) => squeeze(said(run)) === squeeze(text));
    runs = typed.length ? typed : runsOf(words, keysOf(numbered[1])).slice(Number(numbered[2]) - 1, Number(numbered[2]) || 0);
  }
  return runs;
}

/** The phrases of a list that refer to no word, such as words that are not in the prompt. */
export function unknown(words, text) {
  return parse(text).flat().filter((part) => !meant(words, part).length);
}

/** For each word, the index of the first line that contains it, and that line; -1 if there is none. */
export function owners(words, text) {
  const found = words.map(() => ({ line: -1, phrase: "" }));
  parse(text).forEach((parts, line) => {
    for (const index of parts.flatMap((part) => meant(words, part))) {
      if (found[index].line < 0) found[index] = { line, phrase: parts.join(", ") };
    }
  });
  return found;
}

/** The phrase for one occurrence. If the prompt itself contains "room #2", `room#2` refers to that, but `room#02` does not. */
function numbered(words, text, number, run) {
  const phrase = `${text}#${number}`;
  return meant(words, phrase).join() === run.join() ? phrase : `${text}#0${number}`;
}

/** Phrases that refer to exactly these words; adjacent words become one phrase. */
function spell(words, indices) {
  const wanted = [...new Set(indices)].sort((a, b) => a - b);
  const runs = [];
  for (const index of wanted) {
    const last = runs.at(-1);
    const next = last && words.findIndex((word, i) => i > last.at(-1) && word.keys.length);
    if (last && next === index) last.push(index);
    else runs.push([index]);
  }
  const parts = [];
  while (runs.length) {
    const run = runs.shift();
    const text = run.map((index) => words[index].text).join(" ");
    const all = runsOf(words, keysOf(text));
    const place = all.findIndex((other) => other.join() === run.join());
    if (place < 0 && run.length > 1) {
      // In "cat, cat cat" the phrase "cat cat" is found earlier, so that its last two words have no phrase of their own.
      runs.unshift(run.slice(0, -1), run.slice(-1));
      continue;
    }
    const whole = all.every((other) => other.every((index) => wanted.includes(index)));
    const part = (all.length > 1 && !whole ? numbered(words, text, place + 1, run) : text).replaceAll(",", "\\,");
    if (!parts.includes(part)) parts.push(part);
  }
  return parts;
}

/** A phrase without a word, as the phrases that are left of it. */
function taken(words, phrase, index) {
  const found = meant(words, phrase);
  return found.includes(index) ? spell(words, found.filter((other) => other !== index)) : [phrase];
}

/** The phrase list with a word removed from every phrase. */
export function without(words, text, index) {
  return join(parse(text).map((parts) => parts.flatMap((part) => taken(words, part, index))));
}

/** The lines that contain the words next to a word, those before it first. Only a hyphen may stand between two neighbours. */
function besides(words, text, index) {
  const found = owners(words, text);
  const lines = [-1, 1].map((step) => {
    const next = words[index + step]?.text === "-" ? index + 2 * step : index + step;
    return words[next]?.keys.length ? found[next].line : -1;
  });
  return lines.filter((line) => line >= 0);
}

/**
 * The phrase list with a word added. `to`: the phrase that gets it, "next" for that of a neighbouring word or else a new one,
 * "last" for the last phrase, "own" for a new one.
 */
export function including(words, text, index, to = "next") {
  const lines = parse(text);
  const line = { next: () => besides(words, text, index)[0], last: () => lines.length - 1, own: () => -1 }[to]() ?? -1;
  if (line < 0) return join([...lines, spell(words, [index])]);
  const found = lines[line].map((part) => meant(words, part));
  // Phrases that are not in the prompt stay: the node reports the error.
  const unknown = lines[line].filter((part, i) => !found[i].length);
  lines[line] = [...unknown, ...spell(words, [...found.flat(), index])];
  return join(lines);
}

/** The words from one to another, in the order of the prompt and without punctuation. */
export function between(words, from, to) {
  const [first, last] = [Math.min(from, to), Math.max(from, to)];
  return words.flatMap((word, i) => (i >= first && i <= last && word.keys.length ? [i] : []));
}

/** The phrase list with neighbouring words as one phrase, in place of the first that had one of them; without it if it was one. */
export function spanning(words, text, from, to) {
  const span = between(words, from, to);
  const before = owners(words, text);
  const line = Math.min(...span.map((index) => before[index].line).filter((one) => one >= 0));
  const same = span.every((index) => before[index].line === line) && before.filter((one) => one.line === line).length === span.length;
  // Emptied lines keep their place until the phrase has found its own.
  const lines = parse(text).map((parts) => span.reduce((rest, index) => rest.flatMap((part) => taken(words, part, index)), parts));
  if (!same) lines.splice(Math.min(line, lines.length), 0, spell(words, span));
  return join(lines);
}
