import { describe, expect, it } from "vitest";
import { DEAD, MISSING, byteOf } from "../src/data/frame";
import { type Theme, amountPalette, cssOf, loadPalette, mixed } from "../src/draw/colours";

const rgb = (css: string) => [1, 3, 5].map((i) => parseInt(css.slice(i, i + 2), 16)) as [number, number, number];

/** What the eye makes of a colour's lightness (CIE L*). */
function lightness(css: string): number {
  const [r, g, b] = rgb(css).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const y = 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
  return y > 0.008856 ? 116 * Math.cbrt(y) - 16 : 903.3 * y;
}

/** As one without cones for red sees it (Machado 2009, deuteranopia). */
function deuteranopic(css: string): [number, number, number] {
  const [r, g, b] = rgb(css);
  return [0.367 * r + 0.861 * g - 0.228 * b, 0.28 * r + 0.673 * g + 0.047 * b, -0.012 * r + 0.043 * g + 0.969 * b];
}

const apart = (a: number[], b: number[]) => Math.hypot(...a.map((value, i) => value - b[i]!));

describe.each<Theme>(["light", "dark"])("the %s colours of load", (theme) => {
  const palette = loadPalette(theme);

  it("change evenly away from a fair share: more is never mistaken for less", () => {
    const sign = theme === "light" ? -1 : 1;
    for (const way of [-1, 1]) {
      for (let away = 4; away < 126; away++) {
        const near = lightness(cssOf(palette, Math.round(127.5 + way * away)));
        const far = lightness(cssOf(palette, Math.round(127.5 + way * (away + 1))));
        expect(sign * (far - near)).toBeGreaterThan(-0.8);
      }
    }
  });

  it("tell under from over, also to the colour-blind", () => {
    for (const octaves of [0.5, 1, 2, 3]) {
      const under = cssOf(palette, byteOf(2 ** -octaves));
      const over = cssOf(palette, byteOf(2 ** octaves));
      expect(apart(deuteranopic(under), deuteranopic(over))).toBeGreaterThan(30);
    }
  });

  it("give the dead and the unmeasured colours that no load has", () => {
    for (const special of [DEAD, MISSING]) {
      for (let byte = 1; byte < 255; byte++) {
        expect(apart(rgb(cssOf(palette, special)), rgb(cssOf(palette, byte)))).toBeGreaterThan(6);
      }
    }
  });

  it("of amounts begin and end at their stops", () => {
    const amounts = amountPalette(theme, "over");
    expect(lightness(cssOf(amounts, 0)) === lightness(cssOf(amounts, 254))).toBe(false);
  });
});

it("a mixture begins, ends and passes through its stops", () => {
  const stops = ["#102030", "#a0b0c0", "#ffffff"];
  expect(mixed(stops, 0)).toEqual([0x10, 0x20, 0x30]);
  expect(mixed(stops, 0.5)).toEqual([0xa0, 0xb0, 0xc0]);
  expect(mixed(stops, 7)).toEqual([255, 255, 255]);
});
