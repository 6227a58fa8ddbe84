// Draws /openapi.json and /asyncapi.json: groups, routes, parameters, shapes, refusals. Text is text.

const METHODS = ["get", "post", "put", "patch", "delete"];

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return node;
}

// Text with `words` in it.
const prose = (text) => (text ?? "").split(/`([^`]+)`/).map((part, index) => (index % 2 ? el("code", {}, part) : part));

const last = (ref) => ref.split("/").at(-1);

// A schema in one line: `string 1–40`, `Member[]`, `"pin" | "flash"`.
function brief(schema) {
  if (!schema) return "";
  if (schema.$ref) return last(schema.$ref);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return schema.anyOf.map(brief).join(" | ");
  if (schema.allOf) return schema.allOf.map(brief).filter(Boolean).join(" & ");
  if (schema.type === "array") return `${brief(schema.items) || "any"}[]`;
  if (schema.type === "object" && schema.additionalProperties) return `{…: ${brief(schema.additionalProperties)}}`;
  const low = schema.minimum ?? schema.minLength, high = schema.maximum ?? schema.maxLength;
  const bounds = low !== undefined || high !== undefined ? ` ${low ?? ""}–${high ?? ""}` : "";
  return `${schema.type ?? "any"}${schema.format ? ` ${schema.format}` : ""}${bounds}`;
}

function shape(schema, schemas, seen = new Set()) {
  const name = schema?.$ref ? last(schema.$ref) : null;
  const full = name ? schemas[name] : schema;
  if (!full) return el("p", {}, brief(schema));
  if (full.type === "array" && !name) return el("div", {}, el("p", {}, brief(full)), full.items?.$ref ? shape(full.items, schemas, seen) : null);
  if (!full.properties) return el("p", {}, brief(full));
  if (name) seen.add(name);
  const required = new Set(full.required ?? []);
  const inner = [];
  const rows = Object.entries(full.properties).map(([key, value]) => {
    for (const found of JSON.stringify(value).matchAll(/"#\/components\/schemas\/([^"]+)"/g)) {
      if (!seen.has(found[1])) { seen.add(found[1]); inner.push(found[1]); }
    }
    return el("tr", {}, el("td", {}, el("code", {}, key), required.has(key) ? "" : " (may be left out)"),
      el("td", {}, el("code", {}, brief(value))), el("td", {}, prose(value.description)));
  });
  return el("div", {}, name ? el("p", {}, el("strong", {}, name), full.description ? [" — ", ...prose(full.description)] : "") : null,
    el("table", {}, el("tbody", {}, rows)), inner.map((found) => shape({ $ref: `#/components/schemas/${found}` }, schemas, seen)));
}

function operation(path, method, op, schemas) {
  const body = el("div", {});
  const details = el("details", { class: "op", id: op.operationId },
    el("summary", {}, el("span", { class: `verb ${method}` }, method.toUpperCase()), el("span", { class: "path" }, path), el("span", { class: "what" }, op.summary)), body);
  details.dataset.words = [path, method, op.operationId, op.summary, op.description, Object.values(op.responses).map((r) => r.description)].join(" ").toLowerCase();
  details.addEventListener("toggle", () => {
    if (!details.open || body.childNodes.length) return;
    body.append(el("p", {}, prose(op.description)));
    if (op.parameters?.length) {
      body.append(el("h3", {}, "Parameters"), el("table", {}, el("tbody", {}, op.parameters.map((p) =>
        el("tr", {}, el("td", {}, el("code", {}, p.name), p.required ? "" : " (may be left out)"), el("td", {}, p.in), el("td", {}, el("code", {}, brief(p.schema))), el("td", {}, p.description ?? p.schema.description ?? ""))))));
    }
    const sent = op.requestBody?.content?.["application/json"]?.schema;
    if (sent) body.append(el("h3", {}, "Body"), shape(sent, schemas));
    body.append(el("h3", {}, "Answers"));
    for (const [status, response] of Object.entries(op.responses)) {
      const [media, content] = Object.entries(response.content ?? {})[0] ?? [];
      if (status.startsWith("2")) {
        body.append(el("p", {}, el("strong", {}, status), media ? ` ${media}` : " no content"));
        if (content?.schema) body.append(shape(content.schema, schemas));
      } else {
        body.append(el("p", {}, el("strong", {}, status), " ", prose(response.description)));
      }
    }
  });
  return details;
}

function socket(document_, toc, main) {
  const schemas = document_.components.schemas;
  const section = el("section", { id: "socket" }, el("h2", {}, "The socket"), el("p", { class: "about" }, prose(document_.info.description)));
  for (const [name, title] of [["say", "up"], ["hear", "down"]]) {
    for (const message of document_.operations[name].messages) {
      const word = last(message.$ref);
      const described = document_.components.messages[word];
      const body = el("div", {});
      const details = el("details", { class: "op" }, el("summary", {}, el("span", { class: `verb ${name === "say" ? "post" : "get"}` }, title), el("span", { class: "path" }, word), el("span", { class: "what" }, described.summary ?? "")), body);
      details.dataset.words = `${word} ${described.summary}`.toLowerCase();
      details.addEventListener("toggle", () => { if (details.open && !body.childNodes.length) body.append(shape(described.payload, schemas)); });
      section.append(details);
    }
  }
  toc.append(el("a", { href: "#socket" }, "The socket"));
  main.append(section);
}

async function read(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function draw() {
  const main = document.getElementById("main"), toc = document.getElementById("toc");
  try {
    const [api, wire] = await Promise.all([read("/openapi.json"), read("/asyncapi.json")]);
    main.replaceChildren(el("p", { class: "about" }, prose(api.info.description)));
    document.getElementById("title").textContent = `${api.info.title}: API ${api.info.version}`;
    const schemas = api.components.schemas;
    for (const item of Object.values(api.paths)) for (const method of METHODS) {
      for (const [status, response] of Object.entries(item[method]?.responses ?? {})) {
        if (response.$ref) item[method].responses[status] = api.components.responses[last(response.$ref)];
      }
    }
    for (const tag of api.tags) {
      const section = el("section", { id: `group-${tag.name}` }, el("h2", {}, tag.name), el("p", {}, tag.description ?? ""));
      for (const [path, item] of Object.entries(api.paths)) {
        for (const method of METHODS) {
          if (item[method]?.tags?.includes(tag.name)) section.append(operation(path, method, item[method], schemas));
        }
      }
      if (section.querySelector("details")) {
        main.append(section);
        toc.append(el("a", { href: `#group-${tag.name}` }, tag.name));
      }
    }
    socket(wire, toc, main);
    const words = new Map();
    for (const item of Object.values(api.paths)) for (const method of METHODS) for (const [status, response] of Object.entries(item[method]?.responses ?? {})) {
      if (status < "400") continue;
      for (const said of response.description.split("; ")) {
        const found = said.match(/^`(\w+)`: (.*)$/);
        if (found) words.set(found[1], [status, found[2]]);
      }
    }
    main.append(el("section", { id: "refusals" }, el("h2", {}, "Refusals"), el("table", {}, el("tbody", {}, [...words].sort().map(([word, [status, text]]) =>
      el("tr", { id: word }, el("td", {}, el("code", {}, word)), el("td", {}, status), el("td", {}, text)))))));
    toc.append(el("a", { href: "#refusals" }, "Refusals"));
    main.removeAttribute("aria-busy");
    const wanted = location.hash && document.getElementById(location.hash.slice(1));
    if (wanted) { if (wanted.tagName === "DETAILS") wanted.open = true; wanted.scrollIntoView(); }
  } catch (error) {
    main.replaceChildren(el("p", {}, `The description could not be read (${error.message}). Reload to try again.`));
  }
}

document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const details of document.querySelectorAll("details.op")) details.hidden = wanted !== "" && !details.dataset.words.includes(wanted);
});

draw();
