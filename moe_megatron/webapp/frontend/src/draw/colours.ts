/**
 * Colours of numbers: blue under a fair share, orange over it, which the colour-blind tell apart too.
 *
 * Between stops colours are mixed in OKLab (Ottosson 2020), where equal steps look equal.
 */
import { DEAD, EVEN, MISSING, PER_OCTAVE, byteOf } from "../data/frame";

export type Theme = "light" | "dark";

const SCALE = {
  light: {
    under: ["#f1f0ec", "#b4cdec", "#6da0dc", "#2d68b8", "#103a78"],
    over: ["#f1f0ec", "#f7cfa8", "#ee9a55", "#cb5f1d", "#84300a"],
    dead: "#0b0d10",
    missing: "#d9dbde",
  },
  dark: {
    under: ["#272b32", "#2c4a74", "#3a72b8", "#5f9fe6", "#a5cffa"],
    over: ["#272b32", "#6d4323", "#b4652a", "#f0953f", "#ffc488"],
    dead: "#ffffff",
    missing: "#131519",
  },
};

/** Lines of a chart, most different first (after Okabe and Ito 2008, darkened or lightened for the page). */
export const LINES: Record<Theme, string[]> = {
  light: ["#2d68b8", "#cb5f1d", "#0b8468", "#a14a8f", "#8a6d00", "#3d8fb5", "#5b6470"],
  dark: ["#6ea8f0", "#f0953f", "#3fc39c", "#df8fd0", "#dcb93c", "#7fcbe8", "#a3acb8"],
};

type Triple = [number, number, number];

const parse = (hex: string): Triple => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)) as Triple;
const toLinear = (byte: number) => (byte <= 10.31475 ? byte / 3294.6 : ((byte / 255 + 0.055) / 1.055) ** 2.4);
const toByte = (linear: number) =>
  Math.round(255 * Math.min(1, Math.max(0, linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055)));

function toLab(hex: string): Triple {
  const [r, g, b] = parse(hex).map(toLinear) as Triple;
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromLab([L, a, b]: Triple): Triple {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    toByte(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    toByte(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    toByte(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

/** The colour at `at` (0 to 1) of a row of colours. */
export function mixed(stops: string[], at: number): Triple {
  const place = Math.min(1, Math.max(0, at)) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  const from = toLab(stops[i]!);
  const to = toLab(stops[i + 1]!);
  return fromLab(from.map((value, c) => value + (to[c]! - value) * (place - i)) as Triple);
}

/** A colour for each byte, as a pixel of ImageData: red is the lowest byte. */
export type Palette = Uint32Array;

const pixel = ([r, g, b]: Triple): number => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** Half an octave must show, four are rare: colours change fastest around the fair share. */
const EMPHASIS = 0.62;

const palettes = new Map<string, Palette>();

function remembered(key: string, make: () => Palette): Palette {
  let palette = palettes.get(key);
  if (!palette) palettes.set(key, (palette = make()));
  return palette;
}

export function loadPalette(theme: Theme): Palette {
  return remembered(`load ${theme}`, () => {
    const scale = SCALE[theme];
    const palette = Uint32Array.from({ length: 256 }, (_, byte) => {
      const away = Math.abs(byte - EVEN) / (4 * PER_OCTAVE);
      return pixel(mixed(byte < EVEN ? scale.under : scale.over, away ** EMPHASIS));
    });
    palette[DEAD] = pixel(parse(scale.dead));
    palette[MISSING] = pixel(parse(scale.missing));
    return palette;
  });
}

/** Bytes 0 to 254 from little to much of something; 255 is missing, as in a frame. */
export function amountPalette(theme: Theme, kind: "over" | "under"): Palette {
  return remembered(`${kind} ${theme}`, () => {
    const scale = SCALE[theme];
    const palette = Uint32Array.from({ length: 256 }, (_, byte) => pixel(mixed(scale[kind], byte / 254)));
    palette[MISSING] = pixel(parse(scale.missing));
    return palette;
  });
}

export function cssOf(palette: Palette, byte: number): string {
  const value = palette[byte]!;
  return `#${[value & 255, (value >> 8) & 255, (value >> 16) & 255].map((c) => c.toString(16).padStart(2, "0")).join("")}`;
}

/** What the legend of loads names. */
export const LOAD_TICKS = [1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16].map((ratio) => ({
  ratio,
  byte: byteOf(ratio),
  text: ratio < 1 ? `1/${1 / ratio}` : `${ratio}`,
}));
