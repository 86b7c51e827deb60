"use strict";
// What is better with a script: keys, light or dark, and the value of each token. All else works without.
(() => {
  const root = document.documentElement, page = document.body.dataset;
  const kept = (() => { try { return localStorage; } catch { return { getItem: () => null, setItem: () => {} }; } })();
  const theme = kept.getItem("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const turn = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    kept.setItem("theme", root.dataset.theme);
  };
  const button = document.getElementById("theme");
  if (button) { button.hidden = false; button.addEventListener("click", turn); }

  const keys = document.getElementById("keys");
  const name = () => { keys.textContent = keys.dataset[kept.getItem("keys") === "off" ? "on" : "off"]; };
  if (keys) {
    keys.hidden = false;
    name();
    keys.addEventListener("click", () => { kept.setItem("keys", kept.getItem("keys") === "off" ? "on" : "off"); name(); });
  }

  // The value of each token: all of them come with one request, when first asked for.
  const said = document.getElementById("said");
  const island = document.getElementById("all");
  let asked = island ? Promise.resolve(JSON.parse(island.textContent)) : null;
  const shown = () => (asked ??= page.json ? fetch(page.json).then((reply) => (reply.ok ? reply.json() : null)).catch(() => null) : Promise.resolve(null));
  // Texts stand in the order of that answer.
  for (const [place, text] of document.querySelectorAll("#texts .heat:not(.legend)").entries()) {
    text.dataset.r = place;
    text.tabIndex = 0;
    text.role = "group";
    text.ariaLabel = document.getElementById("texts").dataset.label;
  }
  for (const text of document.querySelectorAll("#compared .heat[data-of]")) {
    text.tabIndex = 0;
    text.role = "group";
    text.ariaLabel = document.getElementById("compared").dataset[text.dataset.of];
  }
  // A page holds only coloured tokens apart; a text is divided into all of its tokens when it is first pointed at.
  const symbols = { "\n": "↵", "\t": "⇥", "\r": "␍", "\x1b": "␛", "\x00": "␀", "\x7f": "␡" };
  const spaces = new URLSearchParams(location.search).get("ws") === "1";
  const visible = (token) => {
    let found = token.length > 120 ? `${token.slice(0, 120)}…` : token;
    found = found.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (char) => symbols[char] ?? "·");
    return spaces ? found.replaceAll(" ", "␣") : found;
  };
  const record = (all, text) => {
    if (text.dataset.r) {
      const one = all.texts.flatMap((side) => side.groups).flatMap((group) => group.records)[Number(text.dataset.r)];
      return { one, classes: one.steps.map((step) => `k${step}`), lines: [["", one.activations, one.steps]] };
    }
    if (text.dataset.t) {
      const shown = all.read.shown[Number(text.dataset.t)], one = { ...all.read, ...shown };
      return { one, classes: one.steps.map((step) => `k${step}`), lines: [["", one.activations, one.steps]] };
    }
    const one = all.compared.records[Number(text.closest("[data-c]").dataset.c)];
    const signed = (step) => (step === null ? "unknown" : `${step < 0 ? "n" : "k"}${Math.abs(step)}`);
    const own = new URLSearchParams(location.search).get("scale") === "own";
    const beneath = own ? one.own_steps : one.steps;
    const classes = {
      real: () => one.true_steps.map(signed),
      simulated: () => one.steps.map(signed),
      own: () => one.own_steps.map(signed),
      difference: () => one.difference_steps.map(signed),
      overlay: () => one.true_steps.map((step, place) => `k${step} ${beneath[place] === null ? "unknown" : `u${beneath[place]}`}`),
    }[text.dataset.of]();
    return { one, classes, lines: [["real ", one.true, one.true_steps], ["simulated ", one.in_units, one.steps]] };
  };
  const divide = async (text) => {
    const all = await shown();
    if (!all || text.dataset.whole) return;
    const { one, classes } = record(all, text);
    text.dataset.whole = "1";
    for (const node of [...text.childNodes]) if (!node.classList?.contains("which")) node.remove();
    text.append(...one.tokens.map((token, place) => {
      const shown = document.createElement("u");
      shown.className = classes[place];
      shown.textContent = visible(token);
      return shown;
    }));
  };
  const tokensOf = (text) => [...text.querySelectorAll(":scope > u")];
  let focus = null;
  const tell = async (token) => {
    const text = token.closest(".heat"), all = await shown();
    focus?.classList.remove("at");
    focus = token;
    token.classList.add("at");
    const place = tokensOf(text).indexOf(token);
    if (!all || place < 0 || !said) return;
    const { one, lines } = record(all, text);
    const values = lines.filter(([, list]) => list).map(([name, list, steps]) => list[place] === null ? `${name}–` : `${name}${Number(list[place].toPrecision(5))} (${steps[place]}/10)`);
    const id = one.token_ids ? ` · id ${one.token_ids[place]}` : "";
    said.textContent = `${JSON.stringify(visible(one.tokens[place]))} · ${values.join(" · ")}${id} · #${place}${one.document_id ? ` · ${visible(one.document_id)}` : ""}`;
    said.hidden = false;
  };
  const known = ".heat[data-r], .heat[data-of], .heat[data-t]";
  document.addEventListener("pointerover", async (event) => {
    const text = event.target.closest?.(known);
    if (!text) return;
    const { clientX: x, clientY: y } = event;
    let token = event.target;
    if (!text.dataset.whole) { await divide(text); token = document.elementFromPoint(x, y); }
    if (token?.parentElement === text && token.matches("u")) tell(token);
  });
  document.addEventListener("focusin", async (event) => {
    const text = event.target;
    if (!text.matches?.(known)) return;
    await divide(text);
    const first = text.querySelector("u.at") ?? text.querySelector(".k10, .k9, .k8, .k7") ?? tokensOf(text)[0];
    if (first && document.activeElement === text) tell(first);
  });
  const step = (text, by) => {
    const tokens = tokensOf(text), at = tokens.indexOf(focus);
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, at + by))];
    if (next) { tell(next); next.scrollIntoView({ block: "nearest" }); }
  };

  // What takes longer than a page may is asked for when it is unfolded; its own page has the same.
  for (const fold of document.querySelectorAll("details[data-fetch]")) {
    fold.addEventListener("toggle", async () => {
      if (!fold.open || fold.dataset.whole) return;
      fold.dataset.whole = "1";
      const reply = await fetch(fold.dataset.fetch).catch(() => null);
      const found = reply?.ok && new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("found");
      if (found) fold.lastElementChild.replaceWith(document.adoptNode(found));
    });
  }

  // Who signed once need not write the name again.
  for (const field of document.querySelectorAll("input[name=author]")) {
    field.value = kept.getItem("author") ?? "";
    field.form.addEventListener("submit", () => kept.setItem("author", field.value));
  }

  const go = (address) => { if (address) location.href = address; };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (event.key === "Escape" && said) { said.hidden = true; target.blur?.(); return; }
    if (target.matches?.("input, select, textarea, [contenteditable]")) return;
    // Who speaks to the computer, or hits keys by chance, can turn off those that act without a modifier.
    if (kept.getItem("keys") === "off" && event.key.length === 1) return;
    const text = target.matches?.(known) ? target : null;
    if (text && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      step(text, event.key === "ArrowLeft" ? -1 : 1);
      event.preventDefault();
      return;
    }
    if (target.matches?.(".wide, pre") && event.key.startsWith("Arrow")) return;
    const does = {
      "/": () => document.getElementById("q")?.focus(),
      "?": () => go("/help" + location.search.replace(/^(?!.*lang=).*$/, "").replace(/^.*(lang=[a-z]+).*$/, "?$1")),
      d: turn,
      r: () => go(page.random),
      s: () => go(page.view),
      h: () => go(page.left),
      l: () => go(page.right),
      j: () => go(page.down),
      k: () => go(page.up),
      ArrowLeft: () => go(page.left),
      ArrowRight: () => go(page.right),
      // With Shift, because without it these two scroll.
      ShiftArrowUp: () => go(page.up),
      ShiftArrowDown: () => go(page.down),
    }[event.shiftKey && event.key.startsWith("Arrow") ? `Shift${event.key}` : event.key];
    if (!does) return;
    does();
    event.preventDefault();
  });
})();
