// Numbers, money and time as people read them. Money is an integer of 分 everywhere else.

export const lang = () => (document.documentElement.lang.toLowerCase().startsWith("en") ? "en" : "zh");
const locale = () => (lang() === "en" ? "en-GB" : "zh-CN");

/** 10900 -> "109", 10950 -> "109.50": whole yuan stay short, parts show both digits. */
export function yuan(fen) {
  if (fen === null || fen === undefined || Number.isNaN(fen)) return "–";
  const sign = fen < 0 ? "-" : "";
  const whole = Math.floor(Math.abs(fen) / 100);
  const part = Math.abs(fen) % 100;
  const text = whole.toLocaleString(locale());
  return sign + (part ? `${text}.${String(part).padStart(2, "0")}` : text);
}

export const money = (fen) => (fen < 0 ? `−¥${yuan(-fen)}` : `¥${yuan(fen)}`);

/** "109" or "109.5" -> 10900 / 10950; null when it is no amount of at most two decimals. */
export function fenOf(text) {
  const clean = String(text).trim().replace(/[,,¥¥\s]/g, "");
  const match = /^(\d{1,9})(?:[.。](\d{1,2}))?$/.exec(clean);
  if (!match) return null;
  return Number(match[1]) * 100 + Number((match[2] || "").padEnd(2, "0") || 0);
}

export const count = (n) => (n === null || n === undefined ? "–" : Number(n).toLocaleString(locale()));

export const ratio = (n) =>
  n === null || n === undefined ? "–" : Number(n).toLocaleString(locale(), { maximumFractionDigits: 1 });

/** ms -> "4:59", "1:02:03"; never negative. */
export function span(ms) {
  const total = Math.max(0, Math.ceil(ms / 1000));
  const h = Math.floor(total / 3600);
  const m = Math.floor((total % 3600) / 60);
  const s = String(total % 60).padStart(2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
}

export function asMs(time) {
  if (time === null || time === undefined || time === "") return null;
  if (typeof time === "number") return time;
  const parsed = Date.parse(time);
  return Number.isNaN(parsed) ? null : parsed;
}

const zone = () => document.body.dataset.timezone || undefined;

export function clock(time, withSeconds = true) {
  const ms = asMs(time);
  if (ms === null) return "–";
  const parts = { hour: "2-digit", minute: "2-digit", hour12: false, timeZone: zone() };
  if (withSeconds) parts.second = "2-digit";
  return new Intl.DateTimeFormat(locale(), parts).format(ms);
}

export function day(time) {
  const ms = asMs(time);
  if (ms === null) return "–";
  return new Intl.DateTimeFormat(locale(), {
    month: "numeric",
    day: "numeric",
    weekday: "short",
    hour: "2-digit",
    minute: "2-digit",
    hour12: false,
    timeZone: zone(),
  })
    .format(ms)
    .replace(/(?<=\d)周/, " 周");
}

/** Code points, as the server counts them: an emoji is one. */
export const points = (text) => Array.from(text.normalize("NFC")).length;

// The same rule as chat/comments.py is_question: what the end card counts is what is marked here.
const LINK = /https?:\/\/\S+|www\.\S+/g;
const ASKING =
  /[?？]|[吗嘛么][^\p{L}\p{N}]*$|怎么|怎样|咋|什么|啥|多少|多久|多大|多重|几[个天号点斤袋款年月次种钱折]|哪[个款里儿些种天]|能不能|可不可以|可以不|有没有|有木有|是不是|会不会|要不要|好不好|行不行|为什么|为啥|如何|何时|请问|求问|想问/u;
const ASKING_ENGLISH =
  /^(how|what|when|where|who|why|which|can|could|does|do|is|are|will|would|should|any)\b/i;
const NO_QUESTION = /没什么|不怎么|什么的$|没啥/g;

/** Whether a comment asks something. */
export function asks(text) {
  const plain = text.replace(LINK, "").trim();
  return plain !== "" && (ASKING_ENGLISH.test(plain) || ASKING.test(plain.replace(NO_QUESTION, "")));
}
