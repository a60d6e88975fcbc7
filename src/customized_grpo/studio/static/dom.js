// Elements from data. Text becomes text nodes, so nothing that a run wrote is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function h(name, attributes, ...children) {
  return build(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

// Puts HTML that the server has drawn, and escaped, in the place of what is in `element`; parts that did not
// change stay, so that a reader's selection, scroll and open details survive.
export function setDrawn(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const fresh = [...template.content.children];
  const old = [...element.children];
  const open = new Set([...element.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent));
  for (const summary of template.content.querySelectorAll("details > summary")) {
    if (open.has(summary.textContent)) summary.parentElement.open = true;
  }
  fresh.forEach((part, index) => {
    if (index >= old.length) element.append(part);
    else if (!old[index].isEqualNode(part)) old[index].replaceWith(part);
  });
  for (const part of old.slice(fresh.length)) part.remove();
}
