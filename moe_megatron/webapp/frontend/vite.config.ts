/**
 * The build: one script and one style sheet with hashed names, counted, with the licences of what is in them; and with
 * `--mode report` the script once more, whole, as a report needs it.
 */
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

/** What a first visit may cost, compressed. */
const MOST_BYTES = 120 * 1024;

function counted(): Plugin {
  return {
    name: "counted",
    // What is on the disk: while the bundle is made, style sheet and page are not in it yet.
    writeBundle({ dir }, bundle) {
      const later = (name: string) => bundle[name]?.type === "chunk" && bundle[name].isDynamicEntry;
      const names = Object.keys(bundle).filter((name) => /\.(js|css|html)$/.test(name) && !later(name));
      const total = names.reduce((sum, name) => sum + gzipSync(readFileSync(join(dir!, name)), { level: 9 }).length, 0);
      const said = `first page: ${(total / 1024).toFixed(1)} KB of ${MOST_BYTES / 1024} KB, compressed`;
      if (total > MOST_BYTES) this.error(`${said}; leave something out, or load it later.`);
      console.log(said);
    },
  };
}

/** Bundled packages ask that their licences go along. */
function licensed(): Plugin {
  return {
    name: "licensed",
    generateBundle() {
      const roots = new Set<string>();
      for (const id of this.getModuleIds()) {
        const found = /^[^?]*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id.replace(/^\0/, ""));
        if (found && existsSync(join(found[0], "package.json"))) roots.add(found[0]);
      }
      const texts = [...roots].sort().map((root) => {
        const { name, version, license } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
        const file = readdirSync(root).find((entry) => /^licen[cs]e/i.test(entry));
        return `${name} ${version} (${license})\n\n${file ? readFileSync(join(root, file), "utf8") : ""}`;
      });
      this.emitFile({ type: "asset", fileName: "licenses.txt", source: texts.join(`\n${"-".repeat(80)}\n\n`) });
    },
  };
}

const page = {
  outDir: join(dirname(import.meta.dirname), "page"),
  assetsInlineLimit: 0,
  cssCodeSplit: false,
  modulePreload: false,
  reportCompressedSize: false,
  target: "es2022",
} as const;

export default defineConfig(({ mode }) => ({
  base: "./",
  plugins: mode === "report" ? [react()] : [react(), licensed(), counted()],
  build:
    mode === "report"
      ? {
          ...page,
          emptyOutDir: false,
          copyPublicDir: false,
          rolldownOptions: { input: "src/main.tsx", output: { entryFileNames: "report.js", codeSplitting: false } },
        }
      : {
          ...page,
          emptyOutDir: true,
          // What the first page needs is one script: no chunk for what later ones need, too.
          rolldownOptions: { output: { codeSplitting: { groups: [{ name: "index", tags: ["$initial"] }] } } },
        },
  server: { proxy: { "/api": { target: process.env.MOE_SERVER ?? "http://127.0.0.1:8090", ws: true } } },
  test: { include: ["test/**/*.test.ts"] },
}));
