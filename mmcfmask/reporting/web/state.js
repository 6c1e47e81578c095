'use strict';
// What the whole page shares: the data, the theme, which methods are shown; and sorting of tables.

const report = JSON.parse(document.getElementById('data').textContent);
const hidden = new Set(); // names of methods that are not shown
const redrawing = []; // functions that draw a chart or a list again

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function redraw() {
  redrawing.forEach((draw) => draw());
}

const isDark = () => document.documentElement.dataset.theme === 'dark';
const themeColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Black is the one colour that a dark page cannot show.
const methodColor = (method) => (isDark() && method.color === '#000000' ? '#ffffff' : method.color);

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = find('#theme');
  button.setAttribute('aria-pressed', String(theme === 'dark'));
  drawSwatches();
  redraw();
}

// The markers of Plotly, for tables and buttons, in a box of -1 to 1.
const SHAPES = {
  circle: 'M-1,0A1,1 0 1 1 1,0A1,1 0 1 1 -1,0Z',
  square: 'M-.9,-.9H.9V.9H-.9Z',
  diamond: 'M0,-1.2L1.2,0L0,1.2L-1.2,0Z',
  'triangle-up': 'M-1.1,.8H1.1L0,-1.1Z',
  'triangle-down': 'M-1.1,-.8H1.1L0,1.1Z',
  cross: 'M-.4,-1H.4V-.4H1V.4H.4V1H-.4V.4H-1V-.4H-.4Z',
  x: 'M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z',
};

function drawSwatches() {
  const methods = new Map(report.methods.map((method) => [method.name, method]));
  for (const place of findAll('[data-swatch]')) {
    const method = methods.get(place.dataset.swatch);
    if (!method) continue;
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('viewBox', '-1.3 -1.3 2.6 2.6');
    svg.setAttribute('aria-hidden', 'true');
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', SHAPES[method.symbol]);
    path.setAttribute('fill', methodColor(method));
    path.setAttribute('stroke', themeColor('text'));
    path.setAttribute('stroke-width', '0.12');
    svg.append(path);
    place.replaceChildren(svg);
  }
}

function showMethods() {
  for (const part of findAll('[data-method]')) part.hidden = hidden.has(part.dataset.method);
  for (const button of findAll('button.method')) {
    button.setAttribute('aria-pressed', String(!hidden.has(button.dataset.name)));
  }
  redraw();
}

function toggleMethod(name) {
  if (!hidden.delete(name)) hidden.add(name);
  showMethods();
}

function sortTable(header) {
  const row = header.parentNode;
  const column = [...row.children].indexOf(header);
  const body = header.closest('table').tBodies[0];
  const numeric = header.classList.contains('number');
  const before = header.getAttribute('aria-sort');
  // The largest number first, and names from A on; a second click turns it round.
  const ascending = before ? before === 'descending' : !numeric;
  const value = (line) => {
    const cell = line.children[column];
    if (!numeric) return cell.textContent.trim();
    const number = parseFloat(cell.dataset.value ?? cell.textContent.replace(/,/g, '').replace('−', '-'));
    return Number.isNaN(number) ? null : number;
  };
  const lines = [...body.rows].map((line, place) => ({ line, place, value: value(line) }));
  lines.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
    const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, undefined, { numeric: true });
    return (ascending ? order : -order) || a.place - b.place;
  });
  for (const other of row.children) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
  body.append(...lines.map(({ line }) => line));
}

function makeSortable(table) {
  for (const header of findAll('thead th', table)) {
    const button = find('button', header);
    if (button) button.addEventListener('click', () => sortTable(header));
  }
}

// A labelled select in the controls of a section; calls `change` with the chosen value.
function addChoice(section, id, label, options, change, chosen) {
  const select = element('select', { id });
  for (const [value, text] of options) select.append(element('option', { value }, text));
  if (chosen !== undefined) select.value = chosen;
  find(`${section} .controls`).append(element('label', { for: id }, `${label} `, select));
  select.addEventListener('change', () => change(select.value));
  return select;
}

const setName = (name) => report.names[name] ?? name;

findAll('table.sortable').forEach(makeSortable);
findAll('button.method').forEach((button) => button.addEventListener('click', () => toggleMethod(button.dataset.name)));
find('#filter').addEventListener('input', (event) => {
  const words = event.target.value.toLowerCase().trim();
  hidden.clear();
  for (const { name } of report.methods) if (!name.toLowerCase().includes(words)) hidden.add(name);
  showMethods();
});
find('#all').addEventListener('click', () => {
  find('#filter').value = '';
  hidden.clear();
  showMethods();
});
find('#theme').addEventListener('click', () => setTheme(isDark() ? 'light' : 'dark'));
if (find('#metric')) {
  const show = () => findAll('.metric').forEach((part) => (part.hidden = part.id !== find('#metric').value));
  find('#metric').addEventListener('change', show);
  show();
}
