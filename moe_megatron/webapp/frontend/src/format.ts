/** Numbers in words of the page: short, and never more digits than mean something. */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SIZES = ["", " k", " M", " G", " T", " P", " E"];

export const count = (value: number): string => whole.format(value);

/** Three digits and a thousand's letter: 12.3 k. */
export function short(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3) return value.toExponential(1);
  if (size < 1000) return String(Number(value.toPrecision(3)));
  const power = Math.min(SIZES.length - 1, Math.floor(Math.log10(size) / 3));
  return `${Number((value / 1000 ** power).toPrecision(3))}${SIZES[power]}`;
}

export const ratio = (value: number | null | undefined): string =>
  value === null || value === undefined ? "-" : value === 0 ? "0" : `${value.toFixed(value < 9.95 ? 2 : 1)}\u00d7`;

export const percent = (share: number | null | undefined): string =>
  share === null || share === undefined ? "-" : `${(100 * share).toFixed(share !== 0 && Math.abs(share) < 0.0995 ? 1 : 0)} %`;

export const bytes = (value: number | null | undefined): string => {
  const text = short(value);
  return text === "-" ? text : `${text}${/[a-zA-Z]$/.test(text) ? "" : " "}B`;
};

export const spanText = ([first, last]: [number, number]): string =>
  first === last ? `step ${count(last)}` : `steps ${count(first)} to ${count(last)}`;
