// The page's own script. Text of the corpus becomes text nodes only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const night = window.matchMedia("screen and (prefers-color-scheme: dark)");
  const byId = (id) => document.getElementById(id);

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Charts --------------------------------------------------------------------------------------------------------

  // In dark mode, colour ranges are replaced by their dark counterparts, in which low values are dark.
  function themed(spec) {
    if (!night.matches) return spec;
    const copy = JSON.parse(JSON.stringify(spec));
    const walk = (node) => {
      if (node === null || typeof node !== "object") return;
      if (Array.isArray(node.range) && Object.hasOwn(data.night, node.range[0])) node.range = data.night[node.range[0]];
      for (const [key, value] of Object.entries(node)) if (key !== "datasets") walk(value);
    };
    walk(copy);
    return copy;
  }

  const options = {
    mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip: false, config: data.config,
  };
  const views = new Map();

  async function draw(place) {
    const old = views.get(place);
    if (old) old.finalize();
    const made = await window.vegaEmbed(place, themed(data.charts[Number(place.dataset.chart)]), options);
    views.set(place, made);
    place.dataset.drawn = "";
    describe(place);
    made.view.addEventListener("mousemove", (event, item) => point(event, item && item.datum));
    made.view.addEventListener("mouseout", () => point(null, null));
    made.view.addEventListener("click", (event, item) => {
      if (item && opens(item.datum)) open(item.datum);
    });
  }

  const opens = (datum) => Boolean(data.command && datum && typeof datum.pick === "string");
  const datumOf = (node) => (node && node.__data__ && node.__data__.datum) || null; // Vega's item of an SVG element

  // Each cell, bar or point of a chart is named by its tooltip. A chart is one stop of the Tab key, and arrows move in it.
  function describe(place) {
    const cells = [];
    const names = new Set();
    for (const node of place.querySelectorAll(".role-mark path, .role-mark line")) {
      const datum = datumOf(node);
      if (!datum || !datum.tip || names.has(datum.tip)) continue;
      names.add(datum.tip);
      cells.push(node);
      node.setAttribute("role", opens(datum) ? "button" : "img");
      node.setAttribute("aria-label", datum.tip);
      node.removeAttribute("aria-roledescription");
      node.setAttribute("tabindex", cells.length === 1 ? "0" : "-1");
    }
    place.querySelectorAll(".mark-text.role-mark").forEach((node) => node.setAttribute("aria-hidden", "true"));
    place.setAttribute("role", "group");
    place.setAttribute("aria-roledescription", "chart");
    place.setAttribute("aria-label", place.dataset.name);
  }

  const ring = element("div", "ring");
  function focused(event) {
    const node = event.target;
    const place = event.currentTarget;
    const datum = datumOf(node);
    if (!datum) return;
    place.querySelectorAll("[tabindex='0']").forEach((other) => other.setAttribute("tabindex", "-1"));
    node.setAttribute("tabindex", "0");
    if (!node.matches(":focus-visible")) return;
    const box = node.getBoundingClientRect();
    const frame = place.getBoundingClientRect();
    place.append(ring);
    Object.assign(ring.style, {
      left: `${box.left - frame.left - 3}px`, top: `${box.top - frame.top - 3}px`,
      width: `${box.width + 6}px`, height: `${box.height + 6}px`,
    });
    point({ clientX: box.right - 10, clientY: box.bottom - 10 }, datum);
  }

  function unfocused() {
    ring.remove();
    point(null, null);
  }

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function pressed(event) {
    const datum = datumOf(event.target);
    if (!datum || event.altKey || event.ctrlKey || event.metaKey) return;
    if (arrows[event.key]) {
      const next = neighbour(event.currentTarget, event.target, arrows[event.key]);
      if (next) next.focus();
    } else if ((event.key === "Enter" || event.key === " ") && opens(datum)) {
      open(datum);
    } else {
      return;
    }
    event.preventDefault();
  }

  // The nearest cell in a direction; what lies off the line counts three times.
  function neighbour(place, from, [dx, dy]) {
    const middle = (node) => {
      const box = node.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    };
    const [x, y] = middle(from);
    let best = null;
    let least = Infinity;
    for (const node of place.querySelectorAll("[tabindex]")) {
      const [right, down] = [middle(node)[0] - x, middle(node)[1] - y];
      const along = right * dx + down * dy;
      const far = along + 3 * Math.abs(right * dy + down * dx);
      if (along > 0.5 && far < least) [best, least] = [node, far];
    }
    return best;
  }

  const tip = byId("tip");
  function point(event, datum) {
    tip.hidden = !(datum && datum.tip);
    if (tip.hidden) return;
    tip.textContent = datum.tip;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, window.innerWidth - width - 8);
    const above = event.clientY + 18 + height > window.innerHeight;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${above ? event.clientY - height - 12 : event.clientY + 18}px`;
  }

  // Visible charts are drawn first; the others follow in idle time, so that a print shows all of them.
  const places = [...document.querySelectorAll("[data-chart]")];
  let waiting = [...places];
  let busy = false;
  const idle = window.requestIdleCallback || ((then) => setTimeout(then, 1));
  const sight = new IntersectionObserver((seen) => {
    const near = seen.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    if (near.length) waiting = [...near.filter((place) => waiting.includes(place)),
      ...waiting.filter((place) => !near.includes(place))];
    if (!busy) next();
  }, { rootMargin: "300px" });
  places.forEach((place) => {
    sight.observe(place);
    place.addEventListener("focusin", focused);
    place.addEventListener("focusout", unfocused);
    place.addEventListener("keydown", pressed);
  });

  async function next() {
    const place = waiting.shift();
    busy = Boolean(place);
    if (!place) {
      document.documentElement.dataset.drawn = "";
      return;
    }
    sight.unobserve(place);
    await draw(place);
    idle(next);
  }
  night.addEventListener("change", async () => {
    for (const place of views.keys()) await draw(place);
  });

  // A phone folds long tables; paper and wide screens show them.
  const wide = window.matchMedia("(min-width: 641px)");
  const unfold = (which, open) => document.querySelectorAll(which).forEach((one) => { one.open = open; });
  unfold("details.table", wide.matches);
  wide.addEventListener("change", () => unfold("details.table", wide.matches));
  window.addEventListener("beforeprint", () => unfold("details.notes, details.table", true));

  // Conversations -------------------------------------------------------------------------------------------------

  function card(one, whole) {
    const made = element("article", whole ? "one whole" : "one");
    const head = element("header");
    const reason = one.kept ? "kept" : `dropped: ${one.reason || "without a reason"}`;
    head.append(element("span", one.kept ? "badge" : "badge dropped", reason));
    head.append(element("span", "id", one.id), element("span", "id", one.source));
    made.append(head);
    if (one.reason) {
      const also = one.also.length ? `; other rules that fire: ${one.also.join(", ")}` : "";
      made.append(element("p", "why", `${one.rule}${also}`));
    }
    if (one.duplicate_of) made.append(instead(one));
    made.append(element("p", "why", one.values.map(([name, value]) => `${name} ${value}`).join(" · ")));
    one.messages.forEach(([role, text, cut]) => made.append(message(role, text, cut)));
    if (one.more) made.append(element("p", "more", `${one.more.toLocaleString("en")} more messages: ${data.command} ${one.id}`));
    return made;
  }

  // A card shows the first lines of the first messages, and a button that shows the rest, if there is any.
  function fold(made) {
    const hidden = [...made.querySelectorAll(".message, .more")].some((part) => !part.offsetHeight) ||
      [...made.querySelectorAll(".message p")].some((text) => text.scrollHeight > text.clientHeight + 1);
    if (made.classList.contains("whole") || !hidden) return;
    const more = element("button", "link", "Show all of it");
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      const whole = made.classList.toggle("whole");
      more.textContent = whole ? "Show less" : "Show all of it";
      more.setAttribute("aria-expanded", String(whole));
    });
    made.append(more);
  }

  function instead(one) {
    const line = element("p", "why", `kept instead (${one.alike}): `);
    const there = data.examples.some((other) => other.id === one.duplicate_of);
    const link = element(there ? "button" : "span", there ? "link id" : "id", one.duplicate_of);
    if (there) {
      link.type = "button";
      link.addEventListener("click", () => find(one.duplicate_of));
    }
    line.append(link);
    return line;
  }

  function message(role, text, cut) {
    const made = element("div", "message");
    const said = element("p", "", text);
    said.dir = "auto";
    if (cut) said.append(element("i", "", ` … ${cut.toLocaleString("en")} more characters`));
    made.append(element("b", "", role), said);
    return made;
  }

  function list(place, found, whole = false, step = 5) {
    place.replaceChildren();
    const more = element("button", "", "Show more");
    more.type = "button";
    let shown = 0;
    const add = () => {
      more.remove();
      for (const one of found.slice(shown, shown + step)) {
        const made = card(one, whole);
        place.append(made);
        fold(made);
      }
      shown += step;
      if (shown < found.length) place.append(more);
    };
    more.addEventListener("click", add);
    add();
  }

  const sets = data.examples.map((one) => new Set(one.in));
  function open(datum) {
    const asked = datum.pick.split(" ").filter(Boolean);
    const found = data.examples.filter((_, i) => asked.every((token) => sets[i].has(token)));
    byId("cell-title").textContent = datum.tip;
    byId("cell-found").textContent = found.length ?
      `${found.length.toLocaleString("en")} of them ${found.length === 1 ? "is an example" : "are examples"} on this page.` :
      "None of them is an example on this page.";
    point(null, null);
    if (!byId("cell").open) byId("cell").showModal();
    list(byId("cell-list"), found);
    byId("cell").scrollTop = 0;
  }
  byId("cell").addEventListener("click", (event) => {
    if (event.target === byId("cell")) byId("cell").close();
  });

  if (!byId("examples")) return;
  const state = byId("state");
  const reasons = [...new Set(data.examples.filter((one) => !one.kept).map((one) => one.reason))];
  [["", "kept and dropped"], ["kept", "kept"], ["dropped", "dropped"], ...reasons.map((r) => [`=${r}`, `dropped: ${r}`])]
    .forEach(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      state.append(option);
    });
  const texts = data.examples.map((one) => `${one.id}\n${one.messages.map((m) => m[1]).join("\n")}`.toLowerCase());

  function search() {
    const words = byId("words").value.trim().toLowerCase();
    const wanted = state.value;
    const found = data.examples.filter((one, i) => texts[i].includes(words) &&
      (!wanted || (wanted[0] === "=" ? one.reason === wanted.slice(1) : one.kept === (wanted === "kept"))));
    byId("found").textContent = `${found.length.toLocaleString("en")} of ${data.examples.length.toLocaleString("en")} examples`;
    list(byId("list"), found, Boolean(words)); // a match is not hidden
  }

  function find(words) {
    byId("cell").close();
    byId("words").value = words;
    state.value = "";
    search();
    byId("examples").scrollIntoView();
  }
  byId("words").addEventListener("input", search);
  state.addEventListener("change", search);
  byId("find").addEventListener("submit", (event) => event.preventDefault());
  search();
})();
