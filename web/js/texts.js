// What the panels say, in the language that the editor is set to. English where a text has no translation.
import { app } from "../../../scripts/app.js";

const TEXTS = {
  en: {
    more: "Advanced inputs",
    empty: "No pixel belongs to {names}. Lower theta, or leave out other phrases.",
    unknown: "Not in the prompt: {names}",
  },
  zh: {
    more: "高级输入",
    empty: "没有像素属于 {names}。请降低 theta，或去掉其他短语。",
    unknown: "提示词中没有：{names}",
  },
  ja: {
    more: "詳細な入力",
    empty: "{names} に属するピクセルがありません。theta を下げるか、他のフレーズを減らしてください。",
    unknown: "プロンプトにありません：{names}",
  },
};

function language() {
  const set = String(app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en");
  return TEXTS[set] ?? TEXTS[set.split("-")[0]] ?? TEXTS.en;
}

/** A text by its key, with values in place of `{name}`. */
export function say(key, values = {}) {
  const text = language()[key] ?? TEXTS.en[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}
