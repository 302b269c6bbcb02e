"use strict";
// Draws what the page holds as JSON. Every text goes in as text, never as markup; styles by rule or property.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("explored").textContent);
  for (const [pointer, words] of Object.entries(data.non_finite || {})) {
    const steps = pointer.split("/").slice(1);
    const last = steps.pop();
    steps.reduce((at, step) => at[step], data)[last] = { inf: Infinity, "-inf": -Infinity }[words] ?? NaN;
  }
  const state = { i: 0, l: 1, h: 0, t: 0, r: 30, p: 0, o: 0, e: 0 };
  const plots = {};

  const input = () => data.inputs[state.i];
  const layerOf = (one) => one.layers[Math.min(state.l, one.layers.length) - 1];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const digits = (x) => {
    if (x === null || x === undefined) return "–";
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "not a number" : x < 0 ? "−∞" : "∞";
    const size = Math.abs(x);
    const text = size >= 1e9 || (size < 1e-4 && size > 0)
      ? size.toExponential(3) : size.toLocaleString("en", { maximumSignificantDigits: 4 });
    return (x < 0 ? "−" : "") + text;
  };
  const percent = (x) => `${(100 * x).toFixed(1)} %`;
  const element = (name, text, cls) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (cls) made.className = cls;
    return made;
  };
  const titleOf = (one) => `${one.model}, ${one.input}`;
  const largestOf = (layer) => Math.max(...layer.values.map(Math.abs));

  // --- the view, in the address ---
  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(state)) {
      const value = Number.parseInt(given.get(name), 10);
      if (Number.isInteger(value)) state[name] = value;
    }
    fit();
  }
  function fit() {
    const clamp = (name, low, high) => { state[name] = Math.max(low, Math.min(high, state[name])); };
    clamp("i", 0, data.inputs.length - 1);
    clamp("l", 1, input().layers.length);
    clamp("h", 0, input().attention.maps[0].length);
    clamp("t", 0, input().tokens.length - 1);
    clamp("r", 0, 359);
    const panel = whatIf();
    if (panel) {
      clamp("p", 0, panel.places.length - 1);
      clamp("o", 0, panel.operations.length - 1);
      clamp("e", 0, editedLayers(panel).length - 1);
    }
  }
  const writeHash = () => {
    try { history.replaceState(null, "", "#" + new URLSearchParams(state)); } catch { /* in a frame without one */ }
  };
  function go(changes) {
    Object.assign(state, changes);
    fit();
    writeHash();
    draw(changes);
  }

  // --- tokens: a strip; of an image its patches on the picture, and a strip of what is before them ---
  const buttons = [];  // of each input, of each token
  const prefixOf = (one) => (one.image ? one.tokens.length - one.image.grid[0] * one.image.grid[1] : one.tokens.length);
  function pictureOf(one) {
    const box = element("div", undefined, "patches");
    const picture = element("img");
    picture.src = one.image.picture;
    picture.alt = `The image: ${titleOf(one)}`;
    box.style.setProperty("--rows", one.image.grid[0]);
    box.style.setProperty("--columns", one.image.grid[1]);
    box.append(picture);
    return box;
  }
  function makeStrips() {
    const box = byId("strips");
    box.classList.toggle("pictures", data.inputs.some((one) => one.image));
    data.inputs.forEach((one, i) => {
      const [count, prefix, columns] = [one.tokens.length, prefixOf(one), one.image ? one.image.grid[1] : 1];
      const groups = [];
      if (prefix) groups.push([element("div", undefined, "strip"), "Tokens", 0, prefix]);
      if (one.image) groups.push([pictureOf(one), "Patches", prefix, count]);
      const strip = element("div", undefined, "input");
      strip.append(element("p", titleOf(one), "strip-name"));
      box.append(strip);
      buttons.push([]);
      for (const [group, kind, first, end] of groups) {
        group.setAttribute("role", "group");
        group.setAttribute("aria-label", `${kind} of ${titleOf(one)}`);
        for (let t = first; t < end; t += 1) {
          const button = element("button", t < prefix ? one.labels[t] : undefined);
          button.type = "button";
          button.addEventListener("click", () => go({ i, t }));
          button.addEventListener("mouseenter", () => tell(one, t));
          button.addEventListener("mouseleave", () => tell(input(), state.t));
          button.addEventListener("focus", () => tell(one, t));
          group.append(button);
          buttons[i].push(button);
        }
        group.addEventListener("keydown", (event) => {
          const from = buttons[i].indexOf(document.activeElement);
          const row = from >= prefix ? columns : 1;
          const step = { ArrowRight: 1, ArrowDown: row, ArrowLeft: -1, ArrowUp: -row, Home: -1e6, End: 1e6 }[event.key];
          if (!step) return;
          event.preventDefault();
          const t = Math.max(0, Math.min(count - 1, from + step));
          go({ i, t });
          buttons[i][t].focus();
        });
        strip.append(group);
      }
    });
  }
  function drawStrips() {
    data.inputs.forEach((one, i) => {
      const layer = layerOf(one);
      const ratios = layer.values.map((x) => Math.abs(x) / (layer.median || 1e-30));
      const top = Math.log10(Math.max(1000, ...ratios));
      buttons[i].forEach((button, t) => {
        const level = Math.log10(Math.max(1, ratios[t])) / top;
        const massive = Math.abs(layer.values[t]) > data.thresholds.magnitude && ratios[t] > data.thresholds.ratio;
        button.style.setProperty("--k", level.toFixed(3));
        button.classList.toggle("massive", massive);
        button.dataset.value = layer.values[t];
        button.setAttribute("aria-pressed", String(i === state.i && t === state.t));
        button.tabIndex = t === (i === state.i ? state.t : 0) ? 0 : -1;
        button.setAttribute("aria-label",
          `${one.labels[t]}, position ${t}: ${digits(layer.values[t])}${massive ? ", massive" : ""}`);
      });
    });
    tell(input(), state.t);
  }
  function tell(one, t) {
    const layer = layerOf(one);
    const value = layer.values[t];
    byId("token").textContent = `Layer ${layer.layer}, position ${t} “${one.labels[t]}” (${one.input}): largest `
      + `${digits(value)} at dim ${layer.dims[t]}, ${digits(Math.abs(value) / layer.median)} × the median `
      + `${digits(layer.median)}.`;
  }

  // --- charts ---
  function keys(id, named) {
    byId(id).replaceChildren(...named.map(([text, cls]) => element("span", text, cls)));
  }
  function chart(id, xs, lines, options) {
    const box = byId(id);
    if (plots[id]) plots[id].destroy();
    const ink = colour("--soft");
    const axis = { stroke: ink, grid: { stroke: colour("--rule"), width: 1 }, ticks: { stroke: colour("--rule") },
      font: "13px system-ui, sans-serif" };
    const positive = lines.flatMap((line) => line.values).filter((x) => Number.isFinite(x) && x > 0);
    const low = 10 ** Math.floor(Math.log10(Math.min(...positive)));
    const high = 10 ** Math.ceil(Math.log10(Math.max(...positive) * 1.0001));
    const step = Math.ceil(Math.log10(high / low) / 7);
    const decades = [];
    for (let n = Math.log10(low); n <= Math.log10(high) + 1e-9; n += step) decades.push(10 ** Math.round(n));
    const most = Math.max(0, ...positive) * 1.08 || 1;
    const all = lines.flatMap((line) => line.values).filter(Number.isFinite);
    const [lowest, highest] = [Math.min(...all), Math.max(...all)];
    const pad = Math.max(0.08 * (highest - lowest), 0.0005);
    const range = options.near && all.length ? [lowest - pad, highest + pad] : [0, options.most ?? most];
    const drawable = (x) => (Number.isFinite(x) && (!options.log || x > 0) ? x : null);
    const power = (x) => (x > 0.05 && x < 2000
      ? digits(x) : "10" + [...String(Math.round(Math.log10(x)))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join(""));
    plots[id] = new uPlot({
      width: Math.max(200, box.clientWidth), height: 240, legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false },
      scales: {
        x: { time: false, range: [xs[0] - 0.3, xs[xs.length - 1] + 0.3] },
        y: options.log && positive.length ? { distr: 3, range: [low, high] } : { range },
      },
      axes: [
        { ...axis, incrs: [1, 2, 5, 10, 20, 50], label: options.across ?? "layer", labelSize: 18, labelFont: axis.font, size: 34 },
        { ...axis, size: 60, splits: options.log ? () => decades : undefined,
          values: (_, at) => at.map((x) => (x === null ? "" : options.log ? power(x) : options.near ? Number(x.toFixed(6)) : digits(x))) },
      ],
      series: [{}, ...lines.map((line) => ({
        stroke: colour(line.colour), width: 2, dash: line.dash, points: { show: xs.length < 20, size: 6, fill: colour("--paper") },
      }))],
      hooks: {
        draw: [(u) => {
          if (options.at === undefined) return;
          const x = u.valToPos(options.at, "x", true);
          u.ctx.save();
          u.ctx.strokeStyle = ink;
          u.ctx.lineWidth = devicePixelRatio;
          u.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
          u.ctx.beginPath();
          u.ctx.moveTo(x, u.bbox.top);
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
          u.ctx.stroke();
          u.ctx.restore();
        }],
      },
    }, [xs, ...lines.map((line) => line.values.map(drawable))], box);
    plots[id].over.addEventListener("click", () => options.pick(xs[plots[id].cursor.idx ?? 0]));
    box.setAttribute("aria-label", options.words);
  }
  const others = () => data.inputs.filter((one, i) => i !== state.i && one.layers.length === input().layers.length).slice(0, 3);
  const pickLayer = (l) => go({ l });
  function drawMagnitudes() {
    const one = input();
    const xs = one.layers.map((layer) => layer.layer);
    const lines = [
      { values: one.layers.map(largestOf), colour: "--one" },
      { values: one.layers.map((layer) => Math.abs(layer.values[state.t])), colour: "--two" },
      { values: one.layers.map((layer) => layer.median), colour: "--grey" },
    ];
    const named = [["largest", "c1"], [`position ${state.t} “${one.labels[state.t]}”`, "c2"], ["median", "c4"]];
    for (const other of others()) {
      lines.push({ values: other.layers.map(largestOf), colour: "--three", dash: [6, 4] });
      named.push([`largest, ${other.model === one.model ? other.input : titleOf(other)} (dashed)`, "c3"]);
    }
    keys("magnitudes-keys", named);
    chart("magnitudes", xs, lines, { log: true, at: state.l, pick: pickLayer,
      words: `Largest magnitude by layer; ${digits(largestOf(layerOf(one)))} at layer ${state.l}.` });
  }
  function drawBias() {
    const one = input();
    const layer = layerOf(one);
    const xs = one.layers.map((each) => each.layer);
    const some = one.massive.length > 0 && layer.share !== null;
    for (const id of ["share", "share-keys", "spread", "spread-keys"]) byId(id).hidden = !some;
    if (!some) {
      byId("bias-words").textContent = "In no layer is a token of this input massive and apart from the others.";
      return;
    }
    const first = one.massive.slice(0, 4).map((t) => `${t} “${one.labels[t]}”`);
    const more = one.massive.length > 4 ? ` and ${one.massive.length - 4} more` : "";
    byId("bias-words").textContent = `At layer ${layer.layer} the massive tokens that stand apart from the others `
      + `(position ${first.join(", ")}${more}) get ${percent(layer.share)} of the attention and add a vector of `
      + `norm ${digits(layer.update_norm)} to the others (the rest adds `
      + `${digits(layer.rest_norm)}). From query to query it changes by ${digits(layer.spread)} of its size, what the `
      + `rest adds by ${digits(layer.rest_spread)}: the less, the more it is a bias.`;
    const lines = [{ values: one.layers.map((each) => each.share), colour: "--one" }];
    const named = [["attention on the massive tokens", "c1"]];
    for (const other of others().filter((each) => each.massive.length)) {
      lines.push({ values: other.layers.map((each) => each.share), colour: "--three", dash: [6, 4] });
      named.push([`${other.model === one.model ? other.input : titleOf(other)} (dashed)`, "c3"]);
    }
    keys("share-keys", named);
    chart("share", xs, lines, { at: state.l, most: 1, pick: pickLayer,
      words: `Attention on the massive tokens by layer; ${percent(layer.share)} at layer ${layer.layer}.` });
    keys("spread-keys", [["spread of what they add", "c1"], ["spread of what the rest adds", "c2"]]);
    chart("spread", xs, [
      { values: one.layers.map((each) => each.spread), colour: "--one" },
      { values: one.layers.map((each) => each.rest_spread), colour: "--two" },
    ], { at: state.l, pick: pickLayer, words: `How much the updates change; ${digits(layer.spread)} at layer ${layer.layer}.` });
  }

  // --- attention ---
  function mapOf(one) {
    const heads = one.attention.maps[layerOf(one).layer - 1];
    if (state.h > 0) return heads[state.h - 1];
    return heads[0].map((row, q) => row.map((_, k) => heads.reduce((sum, head) => sum + head[q][k], 0) / heads.length));
  }
  function drawHeat() {
    const one = input();
    const rows = mapOf(one);
    const canvas = byId("heat");
    const { cells } = one.attention;
    const q = cells[state.t];
    const levels = rows.map((row) => row.map((x) => Math.sqrt(Math.min(1000, x) / 1000)));
    paint.cells(canvas, levels, rows.length, { ink: colour("--one"), mark: colour("--link") }, [q, 0, rows.length]);
    const widest = cells.filter((cell) => cell === cells[one.image ? prefixOf(one) : 0]).length;
    byId("cells").textContent = widest > 1
      ? `A row, and a column, is up to ${widest} ${one.image ? "patches" : "tokens"}.` : "";
    const head = state.h === 0 ? "the mean over heads" : `head ${state.h - 1}`;
    byId("head-shown").textContent = state.h === 0 ? "mean" : state.h - 1;
    const found = rows[q].map((x, k) => [x / 1000, k]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    const nameOf = (cell) => {
      const [first, last] = [cells.indexOf(cell), cells.lastIndexOf(cell)];
      if (first === last) return `${first} “${one.labels[first]}”`;
      return one.image ? `${one.labels[first]}–${one.labels[last]}` : `${first}–${last}`;
    };
    byId("heat-token").textContent = `Layer ${layerOf(one).layer}, ${head}: query ${nameOf(q)} attends to`;
    table("keys", ["Key", "Attention"], found.map(([x, k]) => [nameOf(k), percent(x)]));
    canvas.setAttribute("aria-label", `Attention of layer ${layerOf(one).layer}, ${head}: ${rows.length} queries by `
      + `${rows[rows.length - 1].length} keys. Most of query ${nameOf(q)} is on ${nameOf(found[0][1])}: ${percent(found[0][0])}.`);
    canvas.onclick = (event) => {
      const cell = Math.floor((event.offsetY / canvas.clientHeight) * rows.length);
      go({ t: cells.indexOf(cell) });
    };
    canvas.onmousemove = (event) => {
      const cell = Math.floor((event.offsetY / canvas.clientHeight) * rows.length);
      const key = Math.floor((event.offsetX / canvas.clientWidth) * rows.length);
      const x = rows[cell]?.[key];
      canvas.title = x === undefined ? "" : `query ${nameOf(cell)}, key ${nameOf(key)}: ${percent(x / 1000)}`;
    };
    byId("gaze-box").hidden = !one.image;
    if (one.image) drawGaze(one, rows[q], nameOf);
  }
  // One query's row of it, on the picture.
  function drawGaze(one, row, nameOf) {
    const { cells } = one.attention;
    const [prefix, [lines, columns]] = [prefixOf(one), one.image.grid];
    const box = byId("gaze");
    if (box.dataset.input !== String(state.i)) {
      const picture = pictureOf(one);
      picture.append(element("canvas"));
      box.replaceChildren(picture);
      box.dataset.input = state.i;
    }
    const many = row.map(() => 0);
    cells.forEach((cell) => { many[cell] += 1; });
    const shares = cells.slice(prefix).map((cell) => row[cell] / 1000 / many[cell]);
    const [least, most] = [Math.min(...shares), Math.max(...shares)];
    const levels = Array.from({ length: lines }, (_, i) => shares.slice(i * columns, (i + 1) * columns)
      .map((x) => (most > least ? (0.9 * (x - least)) / (most - least) : 0)));
    const at = state.t - prefix;
    const canvas = box.querySelector("canvas");
    paint.cells(canvas, levels, columns, { ink: colour("--one"), mark: colour("--link") },
      at < 0 ? undefined : [Math.floor(at / columns), at % columns, 1]);
    const before = percent(row.slice(0, prefix).reduce((sum, x) => sum + x, 0) / 1000);
    const even = most > least ? `, from ${percent(least)} of it (no colour) to ${percent(most)} on ${one.labels[prefix + shares.indexOf(most)]}`
      : `: ${percent(most)} of it on every patch`;
    const words = `The same query’s attention on the picture${even}${prefix ? `; ${before} on ${one.labels.slice(0, prefix).join(", ")}` : ""}.`;
    byId("gaze-words").textContent = words;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", words);
    const patch = (event) => prefix + Math.floor((event.offsetY / canvas.clientHeight) * lines) * columns
      + Math.floor((event.offsetX / canvas.clientWidth) * columns);
    canvas.onclick = (event) => go({ t: patch(event) });
    canvas.onmousemove = (event) => {
      const cell = cells[patch(event)];
      canvas.title = cell === undefined ? "" : `key ${nameOf(cell)}: ${percent(row[cell] / 1000)}`;
    };
  }
  function table(id, heads, rows) {
    const kind = (i) => (/%$/.test(rows[0][i]) ? "number" : undefined);
    const made = element("table");
    const top = made.createTHead().insertRow();
    heads.forEach((head, i) => {
      const cell = element("th", head, kind(i));
      cell.scope = "col";
      top.append(cell);
    });
    const body = made.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      row.forEach((text, i) => {
        const cell = element(i ? "td" : "th", text, kind(i));
        if (!i) cell.scope = "row";
        line.append(cell);
      });
    }
    const box = byId(id);
    box.replaceChildren(made);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", heads.join(", "));
  }

  // --- the map that turns ---
  function drawSpace() {
    const one = input();
    const { rows, dims, layer } = one.map;
    const canvas = byId("space");
    const colours = { rule: colour("--rule"), hot: colour("--one"), cold: colour("--two"), soft: colour("--soft"), ink: colour("--ink") };
    const peak = paint.bars(canvas, rows, state.r, colours, { rows: "tokens →", columns: "dims →", largest: digits });
    const sizes = one.layers[layer - 1].values.map((x, t) => (one.map.cells[t] === peak[1] ? Math.abs(x) : -1));
    const first = sizes.indexOf(Math.max(...sizes));
    const together = Math.max(...dims.slice(1).map((d, i) => d - dims[i]), 1);
    const words = `Magnitudes after block ${layer} (${titleOf(one)}); the largest, ${digits(peak[0])}, at position `
      + `${first} “${one.labels[first]}”.${together > 1 ? ` A spike is the largest of up to ${together} dims.` : ""}`;
    byId("space-words").textContent = `${words} Drag it, or use the slider.`;
    byId("turn-shown").textContent = `${state.r}°`;
    canvas.setAttribute("aria-label", words);
  }
  function makeSpace() {
    const canvas = byId("space");
    let from = null;
    canvas.addEventListener("pointerdown", (event) => { from = [event.clientX, state.r]; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (from) go({ r: (Math.round(from[1] + (event.clientX - from[0]) / 2) % 360 + 360) % 360 });
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { from = null; });
  }

  // --- what if ---
  // What it is judged by: its name, what is likely then, how it is said, whether it is drawn by its logarithm.
  const METRICS = {
    perplexity: { name: "Perplexity", likely: "Next token", log: true,
      say: (before, now) => `Perplexity ${digits(before)} → ${digits(now)} (× ${digits(now / before)}).` },
    cosine_similarity: { name: "Cosine similarity", likely: "Class", log: false,
      say: (_, now) => `Cosine similarity of the image’s feature to the unedited one: ${Number.isFinite(now) ? now : digits(now)}.` },
  };
  const whatIf = () => data.what_if.find((panel) => panel.model === input().model);
  const editedLayers = (panel) => [...new Set(panel.edits.map((edit) => edit.layer))];
  function drawWhatIf() {
    const panel = whatIf();
    byId("what-if").hidden = !panel;
    if (!panel) return;
    options("place", panel.places, state.p);
    options("operation", panel.operations, state.o);
    const layers = editedLayers(panel);
    const edited = byId("edited");
    edited.max = layers.length - 1;
    edited.value = state.e;
    edited.setAttribute("aria-valuetext", `block ${layers[state.e]}`);
    byId("edited-shown").textContent = layers[state.e];
    const on = panel.image !== undefined ? `“${panel.image}”. One image`
      : `the first ${panel.tokens} tokens of “${panel.text}”${panel.bos ? ", with BOS in front" : ""}, which end in “${panel.ending}”. One text`;
    const over = panel.image !== undefined ? "images" : "windows";
    byId("what-if-words").textContent = `${panel.edits.length} edits of ${panel.model} on ${on}: the sections below have intervals over ${over}.`;
    const { name, likely, say, log } = METRICS[panel.metric];
    const chosen = panel.edits.filter((edit) => edit.place === state.p && edit.operation === state.o);
    const now = chosen.find((edit) => edit.layer === layers[state.e]);
    byId("outcome").textContent = say(panel.unedited.value, now.value);
    byId("next").hidden = panel.unedited.top.length === 0;
    if (panel.unedited.top.length) {
      table("next", [`${likely}, unedited`, "Probability", `${likely}, edited`, "Probability"], panel.unedited.top.map((one, i) => [
        one.name, percent(one.probability), now.top[i].name, percent(now.top[i].probability)]));
    }
    keys("effects-keys", [[`${name.toLowerCase()} by edited layer`, "c1"], ["unedited", "c4"]]);
    chart("effects", layers, [
      { values: chosen.map((edit) => edit.value), colour: "--one" },
      { values: layers.map(() => panel.unedited.value), colour: "--grey" },
    ], { log, near: !log, at: layers[state.e], across: "edited after block", pick: (l) => go({ e: layers.indexOf(l) }),
      words: `${name} by edited layer; ${digits(now.value)} after block ${layers[state.e]}.` });
  }
  function options(id, texts, chosen) {
    const box = byId(id);
    if ([...box.options].map((one) => one.text).join("\n") !== texts.join("\n")) {
      box.replaceChildren(...texts.map((text, i) => new Option(text, i)));
    }
    box.value = chosen;
  }

  // --- all of it ---
  function draw(changes) {
    const all = !changes || "i" in changes || "l" in changes;
    const has = (name) => all || name in changes;
    byId("layer").max = input().layers.length;
    byId("layer").value = state.l;
    byId("layer-shown").textContent = `${state.l} of ${input().layers.length}`;
    byId("head").max = input().attention.maps[0].length;
    byId("head").value = state.h;
    byId("head").setAttribute("aria-valuetext", state.h === 0 ? "mean over heads" : `head ${state.h - 1}`);
    byId("turn").value = state.r;
    byId("input").value = state.i;
    if (has("t")) { drawStrips(); drawMagnitudes(); }
    if (all) drawBias();
    if (has("t") || has("h")) drawHeat();
    if (!changes || "i" in changes || "r" in changes) drawSpace();
    if (!changes || ["i", "p", "o", "e"].some((name) => name in changes)) drawWhatIf();
  }
  function start() {
    const panel = whatIf();
    state.l = input().map.layer;
    state.t = input().image ? 0 : input().tokens.length - 1;
    if (panel) {
      const all = editedLayers(panel);
      state.e = Math.max(0, all.indexOf(input().map.layer));
    }
    readHash();
    byId("explorer").hidden = false;
    byId("input").replaceChildren(...data.inputs.map((one, i) => new Option(titleOf(one), i)));
    for (const [id, name] of [["input", "i"], ["layer", "l"], ["head", "h"], ["turn", "r"], ["place", "p"],
      ["operation", "o"], ["edited", "e"]]) {
      byId(id).addEventListener("input", (event) => go({ [name]: Number(event.target.value) }));
    }
    makeStrips();
    makeSpace();
    draw();
    window.addEventListener("hashchange", () => { if (location.hash.includes("=")) { readHash(); draw(); } });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
    let width = document.documentElement.clientWidth;
    window.addEventListener("resize", () => {
      if (width !== document.documentElement.clientWidth) { width = document.documentElement.clientWidth; draw(); }
    });
  }
  requestAnimationFrame(() => setTimeout(start));  // after the first paint
})();
