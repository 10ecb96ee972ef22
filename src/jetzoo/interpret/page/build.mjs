// Bundle the page into explore.html: script, style and licences of what is bundled, in one file.
// What only each page knows stays a placeholder, see jetzoo/interpret/explorer.py.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const SOURCES = [
  "build.mjs",
  "package.json",
  "package-lock.json",
  "index.html",
  "style.css",
  "pictures.css",
  "../../page.css",
  "main.js",
  "controls.js",
  "data.js",
  "details.js",
  "list.js",
  "matrix.js",
  "plane.js",
  "state.js",
  "symbols.js",
  "views.js",
];

const options = {
  bundle: true,
  minify: true,
  write: false,
  legalComments: "none",
  target: "es2022",
};
const script = await build({ ...options, entryPoints: ["main.js"] });
const style = await build({ ...options, entryPoints: ["style.css"], target: "chrome123" });

// Some packages have others within them: the licences are those of all that are installed to bundle.
const lock = JSON.parse(readFileSync("package-lock.json"));
const packages = Object.keys(lock.packages)
  .filter((path) => path && !lock.packages[path].dev)
  .map((path) => path.replace("node_modules/", ""));
const licences = packages.map((name) => {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`));
  const text = readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim();
  return `${name} ${version}\n${text}`;
});
const hash = createHash("sha256");
for (const path of SOURCES) hash.update(readFileSync(path));

const parts = {
  licences: `<!--\nBuilt from sources with the SHA-256 ${hash.digest("hex")}.\n\nThis page contains:\n\n${licences.join("\n\n").replaceAll("--", "- -")}\n-->`,
  style: style.outputFiles[0].text.trim(),
  script: script.outputFiles[0].text.trim().replaceAll("</script", "<\\/script"),
};
let page = readFileSync("index.html", "utf8");
for (const [name, text] of Object.entries(parts)) page = page.replace(`<!--${name}-->`, () => text);
writeFileSync("explore.html", page);
console.log(
  `wrote explore.html, ${Math.round(page.length / 1000)} kB, with ${packages.join(", ")}`,
);
