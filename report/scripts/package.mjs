// Puts the built script and style sheet into the one page that the Python package carries, with a policy that lets no
// other script run, and with a hash of the sources by which a test sees that the page is their build.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const root = new URL("..", import.meta.url);
const read = (path) => readFileSync(new URL(path, root), "utf8");
const hash = (text) => createHash("sha256").update(text).digest("base64");

const script = read("dist/page.js").trim().replaceAll("</script", "<\\/script");
const style = read("dist/page.css").trim();
const sources = ["index.html", "package-lock.json", "vite.config.ts", "scripts/package.mjs"];
sources.push(
  ...readdirSync(new URL("src/", root))
    .sort()
    .map((name) => `src/${name}`),
);
const digest = createHash("sha256");
for (const name of sources.sort()) digest.update(`${name}\0${read(name)}\0`);

// The licences of what is bundled go along, as they ask for.
const { dependencies } = JSON.parse(read("package.json"));
const notices = [...Object.keys(dependencies), "@dagrejs/graphlib"].sort().map((name) => {
  const folder = new URL(`node_modules/${name}/`, root);
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  if (!file) throw new Error(`${name} has no licence`);
  const { version } = JSON.parse(readFileSync(new URL("package.json", folder), "utf8"));
  return `${name} ${version}\n\n${readFileSync(new URL(file, folder), "utf8").trim()}`;
});

const policy = [
  "default-src 'none'",
  `script-src 'sha256-${hash(script)}'`,
  `style-src 'sha256-${hash(style)}'`,
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");
const page = read("index.html")
  .replace("%POLICY%", () => policy)
  .replace("%SOURCES%", () => digest.digest("hex"))
  .replace("%NOTICES%", () => notices.join("\n\n---\n\n").replaceAll("--", "- -"))
  .replace("%STYLE%", () => style)
  .replace("%SCRIPT%", () => script);
writeFileSync(new URL("../elastic_ir/pictures/page.html", root), page);
console.log(`elastic_ir/pictures/page.html: ${page.length} characters`);
