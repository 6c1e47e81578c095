'use strict';
// Two methods: paired differences, changes of classes, and images whose predictions changed.

const SHOWN_CLASSES = 15; // lost most, and gained most
let chosen = { before: 0, after: 1, set: null, kind: 'lost', class: null };

function table(id, caption, header, left) {
  const made = element('table', { id, class: 'sortable' }, element('caption', {}, caption));
  const cells = header.map((name, i) => element('th', { scope: 'col', class: i >= left ? 'number' : null }, element('button', { type: 'button' }, name)));
  made.append(element('thead', {}, element('tr', {}, ...cells)), element('tbody'));
  makeSortable(made);
  return made;
}

function row(cells, left, values = []) {
  return element('tr', {}, ...cells.map((text, i) => i === 0
    ? element('th', { scope: 'row' }, text)
    : element('td', { class: i >= left ? 'number' : null, 'data-value': values[i] }, text)));
}

// [difference, low, high, images, and two texts] by column; turned round if the report has them the other way.
function paired(before, after) {
  const rows = report.pairs[`${before}-${after}`];
  if (rows) return rows;
  const turned = (value) => (value === null ? null : -value);
  const turnedText = (text) => (parseFloat(text) === 0 ? text : text.replace(/^[+-]/, (sign) => (sign === '+' ? '-' : '+')));
  return Object.fromEntries(Object.entries(report.pairs[`${after}-${before}`]).map(
    ([column, [difference, low, high, images, text, interval]]) => [column, [turned(difference), turned(high), turned(low), images,
      turnedText(text), interval.split(' to ').reverse().map(turnedText).join(' to ')]]));
}

const signed = (value) => (value >= 0 ? '+' : '') + value.toFixed(1);

function drawPairs() {
  const { before, after } = chosen;
  const [first, second] = [before, after].map((index) => report.methods[index].name);
  const caption = `Accuracy of ${second} against ${first}, on the same images`;
  const made = table('pair-table', caption, ['Set', first, second, 'Difference', '95 % interval over images', 'Images'], 1);
  if (before !== after) {
    for (const [column, [difference, low, , images, text, interval]] of Object.entries(paired(before, after))) {
      const [first, second] = [before, after].map((index) => report.accuracy[column][index]);
      made.tBodies[0].append(row(
        [setName(column), first[2], second[2], text, interval, images === null ? '–' : images.toLocaleString('en')],
        1, [null, first[0], second[0], difference, low, images]));
    }
  }
  find('#pairs').replaceChildren(element('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, made));
}

function classChanges() {
  const classes = report.classes[chosen.set];
  const [before, after] = [classes.accuracy[chosen.before], classes.accuracy[chosen.after]];
  if (!before || !after) return [];
  return classes.names
    .map((name, i) => ({ name, count: classes.counts[i], before: before[i], after: after[i], change: after[i] - before[i] }))
    .filter((entry) => entry.before !== null && entry.after !== null)
    .sort((a, b) => a.change - b.change || a.name.localeCompare(b.name));
}

function drawClasses() {
  const place = find('#classes');
  if (!chosen.set) return;
  if (!find('#class-chart')) {
    place.append(element('h3', {}, 'Change per class'), element('div', { class: 'columns' },
      element('figure', {}, element('div', { class: 'chart', id: 'class-chart' }), element('figcaption', {}, `The classes that lost and gained most, at most ${SHOWN_CLASSES} each; the table has all.`)),
      element('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Change of every class' })));
  }
  const changes = classChanges();
  place.hidden = !changes.length;
  if (!changes.length) return;
  const shown = changes.length <= 2 * SHOWN_CLASSES ? changes : [...changes.slice(0, SHOWN_CLASSES), ...changes.slice(-SHOWN_CLASSES)];
  const color = (entry) => (entry.change < 0 ? '#D55E00' : isDark() ? '#56B4E9' : '#0072B2');
  plot('class-chart', [{
    type: 'bar', orientation: 'h', x: shown.map((entry) => entry.change), y: shown.map((entry) => escapeHtml(entry.name)), showlegend: false,
    marker: { color: shown.map(color) }, hovertemplate: '%{text}<extra></extra>', textposition: 'none',
    text: shown.map((entry) => `<b>${escapeHtml(entry.name)}</b><br>${entry.before.toFixed(1)} → ${entry.after.toFixed(1)} (${signed(entry.change)})`),
  }], baseLayout('Change (percentage points)', '', { yaxis: { type: 'category', autorange: 'reversed', automargin: true } }))
    .setAttribute('aria-label', `Change per class on ${setName(chosen.set)}; the table beside it has the numbers`);
  const made = table('class-table', `${setName(chosen.set)}: choose a class to see its images`, ['Class', 'Images', 'Before', 'After', 'Change'], 1);
  for (const entry of changes) {
    const line = row([entry.name, entry.count === null ? '–' : entry.count.toLocaleString('en'), entry.before.toFixed(1), entry.after.toFixed(1), signed(entry.change)],
      1, [null, entry.count, entry.before, entry.after, entry.change]);
    const choose = element('button', { type: 'button', 'aria-pressed': String(chosen.class === entry.name) }, entry.name);
    choose.addEventListener('click', () => { chosen.class = chosen.class === entry.name ? null : entry.name; drawClasses(); drawExamples(); });
    line.firstChild.replaceChildren(choose);
    line.setAttribute('aria-selected', String(chosen.class === entry.name));
    made.tBodies[0].append(line);
  }
  find('.scroll', place).replaceChildren(made);
}

const KINDS = {
  lost: ['right before, wrong after', (a, b) => a[1] && !b[1]],
  gained: ['wrong before, right after', (a, b) => !a[1] && b[1]],
  other: ['wrong in both, in another way', (a, b) => !a[1] && !b[1] && a[0] !== b[0]],
};

function drawExamples() {
  const place = find('#examples');
  const examples = report.examples[chosen.set] ?? [];
  place.replaceChildren();
  if (!Object.keys(report.examples).length) return;
  const seed = [chosen.before, chosen.after].map((i) => report.seeds[i]).find((value) => value !== null && value !== undefined);
  const heading = element('h3', {}, `Images whose predictions changed${chosen.class ? `: ${chosen.class}` : ''}`);
  const kinds = element('select', { id: 'kind' });
  for (const [value, [text]] of Object.entries(KINDS)) kinds.append(element('option', { value }, text));
  kinds.value = chosen.kind;
  kinds.addEventListener('change', () => { chosen.kind = kinds.value; drawExamples(); find('#kind').focus(); });
  place.append(heading, element('p', { class: 'controls' }, element('label', { for: 'kind' }, 'Show ', kinds)));
  const found = examples.filter(({ label, predicted }) => {
    const [a, b] = [predicted[chosen.before], predicted[chosen.after]];
    return a && b && KINDS[chosen.kind][1](a, b) && (!chosen.class || label.split('|').includes(chosen.class));
  });
  const list = element('ul', { class: 'gallery' });
  for (const { path, label, picture, predicted } of found) {
    const says = ([name, right]) => element('span', { class: right ? 'right' : 'wrong' }, `${right ? '✓' : '✗'} ${name}`);
    const [a, b] = [predicted[chosen.before], predicted[chosen.after]];
    list.append(element('li', {},
      element('img', { src: picture, width: 112, height: 112, loading: 'lazy', title: path, alt: `${label}: ${a[0]} before, ${b[0]} after` }),
      element('strong', {}, label), element('br'), says(a), ' → ', says(b)));
  }
  const count = `${found.length} of the ${examples.length} example images in this page${seed === undefined ? '' : `, predictions of seed ${seed}`}.`;
  place.append(list, element('p', { class: 'notes' }, found.length ? count : `None of the ${examples.length} example images in this page is of this kind.`));
}

function drawComparison() {
  drawPairs();
  drawClasses();
  drawExamples();
}

if (find('#compare')) {
  const names = report.methods.map(({ name }, index) => [index, name]);
  [chosen.before, chosen.after] = report.compare ?? [0, 1];
  const choose = (key, convert = Number) => (value) => { chosen[key] = convert(value); chosen.class = key === 'set' ? null : chosen.class; drawComparison(); };
  addChoice('#compare', 'before', 'From', names, choose('before'), String(chosen.before));
  addChoice('#compare', 'after', 'to', names, choose('after'), String(chosen.after));
  const sets = Object.keys(report.classes);
  if (sets.length) {
    chosen.set = sets[0];
    addChoice('#compare', 'class-set', 'Classes and images of', sets.map((name) => [name, setName(name)]), choose('set', String));
  }
  redrawing.push(drawComparison);
}

const prefersDark = window.matchMedia('(prefers-color-scheme: dark)');
prefersDark.addEventListener('change', (event) => setTheme(event.matches ? 'dark' : 'light'));
setTheme(prefersDark.matches ? 'dark' : 'light');
