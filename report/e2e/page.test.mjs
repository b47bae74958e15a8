// The pages that tests/pictures/test_page.py writes, in a real browser. REPORT_PAGES is their folder, CHROMIUM the
// browser; screenshots of every view go to REPORT_SHOTS, if it is given.
import assert from "node:assert/strict";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";

const PAGES = process.env.REPORT_PAGES ?? ".";
const SHOTS = process.env.REPORT_SHOTS;
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const SLOW = Number(process.env.REPORT_PATIENCE ?? 1); // factor on limits of time, for busy machines

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: FLAGS,
  });
});
after(() => browser?.close());

/** A page that is ready, and all that went wrong in it; nothing may be asked of any network. */
async function opened(name, colorScheme = "light") {
  const page = await browser.newPage({ viewport: { width: 1440, height: 900 }, colorScheme });
  page.setDefaultTimeout(15_000);
  const wrong = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) wrong.push(message.text());
  });
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("dialog", (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("request", (request) => {
    if (!/^(file|data|blob):/.test(request.url())) wrong.push(`asked for ${request.url()}`);
  });
  await page.goto(pathToFileURL(join(PAGES, name)).href);
  await page.waitForSelector("html[data-ready]");
  return { page, wrong };
}

const view = (page, name) => page.getByRole("tab", { name }).click();
const shot = async (page, name) => SHOTS && page.screenshot({ path: join(SHOTS, `${name}.png`) });

describe("a ticket that was stretched, beside its source", () => {
  test("every view is drawn, in both themes, without an error", async () => {
    for (const scheme of ["light", "dark"]) {
      const { page, wrong } = await opened("pair.html", scheme);
      await shot(page, `architecture-${scheme}`);
      for (const name of ["Sparsity", "Cost", "Weights", "How it was made"]) {
        await view(page, name);
        await page.waitForTimeout(100);
        await shot(page, `${name.toLowerCase().replaceAll(" ", "-")}-${scheme}`);
      }
      assert.match(await page.textContent(".made"), /Change of depth/);
      assert.deepEqual(wrong, []);
      await page.close();
    }
  });

  test("dark mode is dark, and the button changes it", async () => {
    const { page } = await opened("pair.html", "dark");
    const ground = (colour) =>
      page.waitForFunction((wanted) => getComputedStyle(document.body).backgroundColor === wanted, colour);
    await ground("rgb(11, 14, 19)");
    await page.keyboard.press("t");
    await ground("rgb(246, 247, 249)");
    await page.close();
  });

  test("a copy's line leads to its source", async () => {
    const { page, wrong } = await opened("pair.html");
    const copy = page.locator("#block-1-6");
    assert.match(await copy.getAttribute("aria-label"), /layer1\.6, free, copy, of source block 2/);
    await page.locator('.wire[data-block="6"]').dispatchEvent("click");
    assert.equal(await page.textContent(".panel h2"), "layer1.2");
    assert.match(await page.textContent(".panel .lineage"), /Became layer1\.2\s*layer1\.6/);
    await page.locator(".panel .link", { hasText: "layer1.6" }).click();
    assert.match(await page.textContent(".panel .lineage"), /A copy of layer1\.2 of the source/);
    assert.equal(await page.locator(".wire.lit").count(), 2);
    await shot(page, "block");
    assert.deepEqual(wrong, []);
    await page.close();
  });

  test("an operation opens its weight, with mask and histogram", async () => {
    const { page, wrong } = await opened("pair.html");
    await page.locator("#block-1-6").click();
    assert.equal(await page.locator(".op").count(), 7);
    await page.locator(".op.has-weights").first().click();
    assert.equal(await page.textContent(".panel h2"), "layer1.6.conv1.weight");
    assert.match(await page.textContent(".panel"), /originlayer1\.2\.conv1\.weight/);
    const kept = () =>
      page.evaluate(() => {
        const canvas = document.querySelector(".mask canvas");
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {
          willReadFrequently: true,
        });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
        let blue = 0;
        for (let at = 0; at < data.length; at += 4) if (data[at] < 60 && data[at + 3] === 255) blue++;
        return blue / (data.length / 4);
      });
    await page.waitForFunction(() => document.querySelector(".uplot canvas") !== null);
    let far = 0;
    for (let tries = 0; tries < 50 && far < 0.05; tries++) {
      await page.waitForTimeout(100);
      far = await kept();
    }
    assert.ok(far > 0.05 && far < 0.9, `${far} of the mask's image is kept`);
    await page.locator(".mask canvas").focus();
    for (let press = 0; press < 4; press++) await page.keyboard.press("+");
    await page.keyboard.press("ArrowDown");
    await shot(page, "weight-zoomed");
    assert.notEqual(await kept(), far);
    await page.keyboard.press("0");
    await page.waitForTimeout(100);
    assert.equal(await kept(), far);
    await page.locator(".panel .facts .link").click();
    assert.match(await page.textContent(".panel .eyebrow"), /source/);
    await shot(page, "weight");
    assert.deepEqual(wrong, []);
    await page.close();
  });

  test("search finds a weight by the keyboard alone", async () => {
    const { page, wrong } = await opened("pair.html");
    await page.keyboard.press("/");
    await page.keyboard.type("layer3 8 conv2");
    assert.equal(await page.locator(".dialog li").count(), 1);
    await shot(page, "search");
    await page.keyboard.press("Enter");
    assert.equal(await page.textContent(".panel h2"), "layer3.8.conv2.weight");
    await page.keyboard.press("Escape");
    assert.equal(await page.locator(".panel").count(), 0);
    assert.deepEqual(wrong, []);
    await page.close();
  });

  test("tables sort, and filter", async () => {
    const { page, wrong } = await opened("pair.html");
    await view(page, "Weights");
    const column = (number) =>
      page.$$eval(`.weights tbody tr:not([aria-hidden]) td:nth-child(${number})`, (cells) =>
        cells.map((cell) => cell.textContent),
      );
    await page.getByRole("button", { name: "sparsity", exact: true }).click();
    const falling = (await column(6)).map(parseFloat).filter((value) => !Number.isNaN(value));
    assert.ok(falling.length > 5 && falling.every((value, at) => !at || value <= falling[at - 1]));
    assert.equal(await page.getAttribute("th:nth-child(6)", "aria-sort"), "descending");
    await page.getByRole("button", { name: "name", exact: true }).click();
    assert.equal((await column(1))[0], "bn1.bias");
    await page.getByLabel("Filter by name").fill("layer2 conv1");
    assert.equal((await column(1)).length, 9);
    assert.deepEqual(wrong, []);
    await page.close();
  });

  test("keys move between blocks and change their size", async () => {
    const { page } = await opened("pair.html");
    await page.locator("#block-1-6").focus();
    const focused = () => page.evaluate(() => document.activeElement?.id);
    const height = () => page.evaluate(() => document.querySelector(".block").offsetHeight);
    await page.keyboard.press("ArrowDown");
    await page.waitForFunction(() => document.activeElement?.id === "block-1-7");
    await page.keyboard.press("ArrowLeft");
    await page.waitForFunction(() => document.activeElement?.id === "block-0-3");
    const usual = await height();
    await page.keyboard.press("-");
    assert.ok((await height()) < usual);
    assert.equal(await focused(), "block-0-3");
    await page.keyboard.press("Enter");
    assert.equal(await page.textContent(".panel h2"), "layer1.3");
    await page.close();
  });
});

test("the source is known from the record alone", async () => {
  const { page, wrong } = await opened("alone.html");
  assert.match(await page.textContent(".heads"), /as the record tells/);
  assert.equal(await page.locator(".wire").count(), 27);
  assert.deepEqual(wrong, []);
  await page.close();
});

test("names from hostile files are text", async () => {
  const { page, wrong } = await opened("hostile.html");
  for (const name of ["Sparsity", "Cost", "Weights", "How it was made"]) await view(page, name);
  await view(page, "Weights");
  assert.match(await page.textContent(".weights"), /<img src=x onerror=alert\(1\)>/);
  assert.equal(await page.locator("main img, main script").count(), 0);
  assert.equal(await page.evaluate(() => globalThis.hurt), undefined);
  assert.deepEqual(wrong, []);
  await page.close();
});

test("the policy lets no other script run", async () => {
  const { page } = await opened("pair.html");
  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "globalThis.hurt = true";
    document.body.append(script);
  });
  assert.equal(await page.evaluate(() => globalThis.hurt), undefined);
  await page.close();
});

test("a thousand units scroll in frames of less than 50 ms", async () => {
  const { page, wrong } = await opened("thousand.html");
  const frames = await page.evaluate(
    () =>
      new Promise((done) => {
        const box = document.querySelector(".scroller");
        const times = [];
        let last = performance.now();
        const step = (now) => {
          times.push(now - last);
          last = now;
          box.scrollTop += 230;
          if (times.length < 120) requestAnimationFrame(step);
          else done(times.slice(5));
        };
        requestAnimationFrame(step);
      }),
  );
  frames.sort((a, b) => a - b);
  const [middle, late] = [frames[frames.length >> 1], frames[Math.floor(frames.length * 0.95)]];
  console.log(
    `frames: median ${middle.toFixed(1)} ms, 95th percentile ${late.toFixed(1)} ms, most ${frames.at(-1).toFixed(1)} ms`,
  );
  assert.ok(middle < 50 * SLOW, `the median frame takes ${middle} ms`);
  assert.ok((await page.locator(".block").count()) < 250, "only what is in sight is there");
  assert.ok(await page.evaluate(() => document.querySelector(".scroller").scrollTop > 20_000));
  await shot(page, "thousand");
  assert.deepEqual(wrong, []);
  await page.close();
});

test("the first paint comes within a second", async () => {
  for (const name of ["pair.html", "thousand.html"]) {
    const { page } = await opened(name);
    const told = await page.waitForFunction(
      () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
    );
    const paint = await told.jsonValue();
    console.log(`${name}: first contentful paint after ${paint.toFixed(0)} ms`);
    assert.ok(paint < 1000 * SLOW, `${name} is painted after ${paint} ms`);
    await page.close();
  }
});
