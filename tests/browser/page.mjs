// The status page in headless Chromium: `node page.mjs FOLDER_OF_node_modules URL [SCREENSHOTS]`.
// It says what it saw on stdout, a line each, and waits for a line on stdin where the other side has something to do.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";

const [modules, url, screenshots] = process.argv.slice(2);
const require = createRequire(modules + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (what) => process.stdout.write(what + "\n");
const wrong = [];
const check = (is, what) => { if (!is) wrong.push(what); };

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--no-proxy-server"] });

async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on("console", (message) => { if (message.type() === "error" && !message.location().url.endsWith("/favicon.ico") && !page.gone) wrong.push(`console: ${message.text()}`); });
  page.on("pageerror", (error) => wrong.push(`error: ${error}`));
  page.on("dialog", (dialog) => { wrong.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => check(request.url().startsWith(url), `a request to ${request.url()}`));
  await page.goto(url, { waitUntil: "domcontentloaded" });
  return page;
}

async function looks(page, name) {
  const wide = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  check(wide[0] <= wide[1], `${name}: ${wide[0]} px wide in ${wide[1]}`);
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
  for (const one of violations) wrong.push(`${name}: axe ${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html).join(" | ")}`);
  if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png` });
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1200, 360]) {
    const page = await open({ bypassCSP: true, colorScheme, viewport: { width, height: 800 } });
    await looks(page, `status-${colorScheme}-${width}`);
    await page.context().close();
  }
}

const plain = await open({ javaScriptEnabled: false });
check((await plain.textContent("h1")).length > 0, "no word without a script");
check((await plain.locator("table").count()) > 0, "no members without a script");
await plain.context().close();

const timed = await open({ bypassCSP: true });
const paint = await timed.evaluate(() => new Promise((done) => {
  new PerformanceObserver((list) => { for (const one of list.getEntries()) if (one.name === "first-contentful-paint") done(one.startTime); }).observe({ type: "paint", buffered: true });
}));
say(`painted ${Math.round(paint)}`);
await timed.context().close();

// Under the page's own policy: nothing is evaluated here.
const page = await open({ viewport: { width: 1200, height: 800 } });
say(`word ${await page.textContent("h1")}`);
// The other side changes something now, and says which word it comes to.
const { value: next } = await lines.next();
await page.locator("h1", { hasText: next }).waitFor({ timeout: 20000 });
check((await page.locator("img").count()) === 0, "a name became an element");
page.gone = true; // From now on its stream may break.
say(`word ${await page.textContent("h1")}`);
// The daemon goes away.
await lines.next();
await page.waitForSelector(".is-stale #stale", { timeout: 30000 });
say(`stale ${await page.textContent("#stale")}`);
await browser.close();
for (const what of wrong) say(`WRONG ${what}`);
process.exit(wrong.length ? 1 : 0);
