// Drives the page in Chromium: node drive.mjs PLAYWRIGHT CHROMIUM ARGUMENTS.json; prints what was seen as JSON.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [playwright, executablePath, argumentsFile] = process.argv.slice(2);
const { chromium } = createRequire(path.join(playwright, "x"))(playwright);
const given = JSON.parse(fs.readFileSync(argumentsFile, "utf8"));
const seen = { requests: [], errors: [] };

const flags = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--use-fake-device-for-media-stream",
];
if (!given.deny) flags.push("--use-fake-ui-for-media-stream");
if (given.wav) flags.push(`--use-file-for-fake-audio-capture=${given.wav}`);
const context = await chromium.launchPersistentContext(given.userData, {
  executablePath,
  args: flags,
  headless: true,
  acceptDownloads: true,
  viewport: { width: given.width ?? 1000, height: 900 },
  colorScheme: given.colours ?? "light",
});
const page = await context.newPage();
page.on("requestfinished", (request) => seen.requests.push(request.url()));
page.on("pageerror", (error) => seen.errors.push(String(error)));
const text = (id) => page.locator(`#${id}`).textContent();
const shot = (name) => page.screenshot({ path: path.join(given.shots, `${name}.png`), fullPage: true });

/** Press Tab until the element has the focus. */
async function tabTo(id) {
  for (let i = 0; i < 40; i++) {
    if (await page.evaluate((wanted) => document.activeElement?.id === wanted, id)) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab never reaches #${id}`);
}

const steps = {
  async enrol({ name }) {
    await tabTo("name");
    await page.keyboard.type(name);
    await tabTo("enrol-start");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#progress").value >= 1, null, { timeout: 60000 });
    await shot("enrolling");
    await tabTo("enrol-save");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#profiles li");
    seen.enrolled = await text("prompt");
  },
  async export() {
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page
        .getByRole("button", { name: /^Export/ })
        .first()
        .click(),
    ]);
    await download.saveAs(given.exported);
  },
  async import() {
    await page.setInputFiles("#import", given.imported);
    await page.waitForFunction(
      () => document.querySelector("#profiles li") || document.querySelector("#problem").textContent,
      null,
      { timeout: 10000 },
    );
    seen.problem = await text("problem");
    seen.profiles = await page.locator("#profiles li > span").allTextContents();
  },
  async verify({ slow }) {
    if (slow) await (await context.newCDPSession(page)).send("Emulation.setCPUThrottlingRate", { rate: slow });
    await tabTo("verify-start");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#verdict").className !== "", null, { timeout: 90000 });
    seen.verdict = await page.locator("#verdict").getAttribute("class");
    seen.reason = await text("verdict");
    seen.gauge = await page.locator("#gauge").getAttribute("aria-label");
    await shot(`${given.name}-verdict`);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#state").textContent === "The microphone is off.");
  },
  async denied() {
    await page.click("#verify-start");
    await page.waitForFunction(() => document.querySelector("#problem").textContent);
    seen.problem = await text("problem");
    seen.verdict = await page.locator("#verdict").getAttribute("class");
    seen.state = await text("state");
    await shot("denied");
  },
  async policy() {
    seen.blocked = await page.evaluate(async (elsewhere) => {
      const violations = [];
      document.addEventListener("securitypolicyviolation", (event) => violations.push(event.effectiveDirective));
      const settled = async (promise) =>
        promise.then(
          () => "sent",
          () => "blocked",
        );
      const found = {
        fetchElsewhere: await settled(fetch(elsewhere, { mode: "no-cors" })),
        fetchHome: await settled(fetch("model/calibration.json", { cache: "no-store" })),
      };
      const add = (tag, key) =>
        new Promise((resolve) => {
          const made = document.createElement(tag);
          made.onerror = made.onload = () => resolve();
          made[key] = `${elsewhere}?${tag}`;
          document.body.append(made);
          setTimeout(resolve, 300);
        });
      for (const [tag, key] of [
        ["img", "src"],
        ["script", "src"],
        ["iframe", "src"],
        ["video", "src"],
        ["object", "data"],
      ])
        await add(tag, key);
      try {
        new WebSocket(elsewhere.replace("http", "ws"));
      } catch {
        /* as good */
      }
      try {
        new Worker("app.js");
      } catch {
        /* as good */
      }
      navigator.sendBeacon(elsewhere, "voice");
      const form = document.createElement("form");
      [form.action, form.method] = [elsewhere, "post"];
      document.body.append(form);
      form.submit();
      await new Promise((resolve) => setTimeout(resolve, 500));
      return { ...found, violations: [...new Set(violations)].sort() };
    }, given.elsewhere);
  },
  async layout() {
    seen.scrollWidth = await page.evaluate(() => document.documentElement.scrollWidth);
    seen.nameless = await page.evaluate(() =>
      Array.from(document.querySelectorAll("button, input, select, meter, progress, [role=img]"))
        .filter(
          (each) =>
            !(each.labels?.length || each.textContent.trim() || each.getAttribute("aria-label")) ||
            (each.labels && each.matches("input, select") && !each.labels.length),
        )
        .map((each) => each.outerHTML),
    );
    seen.small = await page.evaluate(() =>
      Array.from(document.querySelectorAll("button, input, select"))
        .filter((each) => each.getBoundingClientRect().height < 44)
        .map((each) => each.id || each.textContent),
    );
    await shot(`layout-${given.width}`);
  },
};

try {
  await page.goto(given.url);
  await page.waitForFunction(() => !document.querySelector("#ready").textContent.startsWith("Loading"), null, {
    timeout: 60000,
  });
  seen.ready = await text("ready");
  seen.problem = await text("problem");
  for (const [step, options] of given.steps) await steps[step](options ?? {});
} catch (error) {
  seen.failed = String(error);
  seen.state = { problem: await text("problem"), prompt: await text("prompt"), verdict: await text("verdict") };
  await shot("failed");
} finally {
  console.log(JSON.stringify(seen));
  await context.close();
}
