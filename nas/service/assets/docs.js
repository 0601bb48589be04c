// The description of the service as a page to read and to try: everything is made from openapi.json.
"use strict";
(async () => {
  const make = (name, given = {}, ...content) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(given)) {
      if (key in made) made[key] = value; else made.setAttribute(key, value);
    }
    made.append(...content.filter((part) => part !== null));
    return made;
  };
  const token = document.getElementById("token");
  const headers = () => (token.value ? { Authorization: `Bearer ${token.value}` } : {});
  const described = await (await fetch("openapi.json")).json();

  const resolved = (schema) => {
    let found = schema ?? {};
    while (found.$ref) found = found.$ref.slice(2).split("/").reduce((part, key) => part[key], described);
    return found;
  };
  const kind = (given) => {
    const schema = resolved(given);
    const options = schema.anyOf ?? schema.oneOf;
    if (options) return [...new Set(options.map(kind))].filter((word) => word !== "null").join(" or ");
    if (schema.enum) return schema.enum.join(" | ");
    if (schema.type === "array") return `list of ${kind(schema.items)}`;
    if (schema.type === "object" && schema.additionalProperties) return `name -> ${kind(schema.additionalProperties)}`;
    return schema.title && schema.type === "object" ? schema.title : schema.type ?? "anything";
  };
  const bounds = (given) => {
    const schema = resolved(given);
    const words = { minimum: ">=", maximum: "<=", exclusiveMinimum: ">", exclusiveMaximum: "<" };
    const parts = [schema, ...(schema.anyOf ?? [])].flatMap((one) =>
      Object.keys(words).filter((key) => key in one).map((key) => `${words[key]} ${one[key]}`));
    if ("default" in schema && schema.default !== null) parts.push(`default ${JSON.stringify(schema.default)}`);
    return parts.join(", ");
  };
  const example = (given) => {
    const schema = resolved(given);
    if (schema.examples?.length) return schema.examples[0];
    if (schema.enum) return schema.enum[0];
    if (schema.type === "object") {
      return Object.fromEntries(Object.entries(schema.properties ?? {})
        .filter(([name, field]) => schema.required?.includes(name) || resolved(field).examples?.length)
        .map(([name, field]) => [name, example(field)]));
    }
    return { array: [], string: "", integer: 0, number: 0, boolean: false }[schema.type] ?? null;
  };
  const table = (titles, rows) => make("div", { className: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, ...titles.map((title) => make("th", {}, title)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell)))))));
  const fields = (given) => {
    const schema = resolved(given);
    const rows = Object.entries(schema.properties ?? {}).map(([name, field]) =>
      [make("code", {}, name + (schema.required?.includes(name) ? " *" : "")), kind(field), bounds(field)]);
    return make("div", {}, make("pre", { className: "said" }, schema.description ?? ""),
      rows.length ? table(["field", "type", "bounds"], rows) : "");
  };

  function tried(method, path, operation) {
    const inputs = (operation.parameters ?? []).map((parameter) => {
      const many = resolved(parameter.schema).type === "array";
      const box = make("input", { placeholder: many ? "one, or several with commas" : "", ariaLabel: parameter.name });
      return { parameter, box, many };
    });
    const [type, media] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [];
    const json = type === "application/json";
    const body = !type ? null : json
      ? make("textarea", { rows: 5, spellcheck: false, value: JSON.stringify(example(media.schema), null, 2), ariaLabel: "body" })
      : make("input", { type: "file", ariaLabel: "body" });
    const answer = make("div", { className: "answer" });
    const send = make("button", { type: "button" }, "Send");
    const asked = () => {
      let place = path;
      const query = new URLSearchParams();
      for (const { parameter, box, many } of inputs) {
        if (parameter.in === "path") place = place.replace(`{${parameter.name}}`, encodeURIComponent(box.value));
        else for (const part of many ? box.value.split(",") : [box.value]) if (part.trim()) query.append(parameter.name, part.trim());
      }
      return place.slice(1) + (query.size ? `?${query}` : "");
    };
    send.onclick = async () => {
      const options = { method: method.toUpperCase(), headers: headers() };
      if (type) {
        options.headers["Content-Type"] = type;
        options.body = json ? body.value : body.files[0] ?? "";
      }
      const quoted = (words) => `'${words.replaceAll("'", `'\\''`)}'`;
      const given = !type ? "" : ` -H 'Content-Type: ${type}' ` +
        (json ? `-d ${quoted(body.value)}` : `--data-binary @${quoted(body.files[0]?.name ?? "FILE")}`);
      const command = `curl -X ${options.method} ${quoted(new URL(asked(), document.baseURI).href)}` +
        (token.value ? ' -H "Authorization: Bearer $TOKEN"' : "") + given;
      answer.replaceChildren("...");
      try {
        const reply = await fetch(asked(), options);
        const blob = await reply.blob();
        const readable = /json|text/.test(reply.headers.get("Content-Type") ?? "");
        let shown = readable ? await blob.text() : "";
        try { shown = JSON.stringify(JSON.parse(shown), null, 2); } catch { /* plain text stays as it is */ }
        const saved = readable ? null
          : make("a", { href: URL.createObjectURL(blob), download: "answer.bin" }, `save ${blob.size} bytes`);
        answer.replaceChildren(make("b", { className: reply.ok ? "good" : "bad" }, `${reply.status} ${reply.statusText}`),
          " ", reply.headers.get("Location") ?? "", saved ?? make("pre", {}, shown), make("code", {}, command));
      } catch (error) {
        answer.replaceChildren(make("b", { className: "bad" }, String(error)));
      }
    };
    const rows = inputs.map(({ parameter, box }) => [make("code", {}, parameter.name + (parameter.required ? " *" : "")),
      kind(parameter.schema), bounds(parameter.schema), parameter.description ?? "", box]);
    return make("div", { className: "inside" },
      rows.length ? table(["parameter", "type", "bounds", "", "value"], rows) : null,
      type ? make("h4", {}, `body: ${type}`) : null, type ? fields(media.schema) : null, body, send, answer,
      table(["code", "when"], Object.entries(operation.responses).map(([code, one]) => [make("code", {}, code), one.description])));
  }

  document.title = described.info.title;
  document.getElementById("name").textContent = described.info.title;
  document.getElementById("about").textContent = `${described.info.summary ?? ""} Version ${described.info.version}.`;
  const groups = new Map();
  for (const [path, methods] of Object.entries(described.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const group = operation.tags?.[0] ?? "other";
      if (!groups.has(group)) groups.set(group, make("section", {}, make("h2", {}, group)));
      const inside = make("details", {}, make("summary", {}, make("b", { className: method }, method.toUpperCase()),
        make("code", {}, path), make("span", {}, operation.description?.split("\n")[0] ?? operation.summary ?? "")));
      inside.addEventListener("toggle", () => inside.append(tried(method, path, operation)), { once: true });
      groups.get(group).append(inside);
    }
  }
  document.getElementById("routes").replaceChildren(...groups.values());
})().catch((error) => { document.getElementById("routes").textContent = `The description cannot be read: ${error}`; });
