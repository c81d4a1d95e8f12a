/** Dark or light: as the system has it, until the reader says otherwise. */
import { useSyncExternalStore } from "react";
import type { Theme } from "../draw/colours";

const KEY = "moe-megatron-theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set<() => void>();

const kept = (): string | null => {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // a page from a file may keep nothing
  }
};

let chosen = kept();
const theme = (): Theme => (chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light");

function tell(): void {
  document.documentElement.dataset.theme = theme();
  for (const listener of listeners) listener();
}

system.addEventListener("change", tell);
tell();

export function turnTheme(): void {
  chosen = theme() === "dark" ? "light" : "dark";
  try {
    localStorage.setItem(KEY, chosen);
  } catch {
    // it is kept for this visit
  }
  tell();
}

export const useTheme = (): Theme =>
  useSyncExternalStore((listener) => {
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, theme);
