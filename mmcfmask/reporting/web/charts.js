'use strict';
// The charts: ID against OOD with WiSE-FT curves, effective robustness, groups, reliability.

const PLOT_OPTIONS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ['lasso2d', 'select2d', 'autoScale2d'] };
const logit = (percent) => {
  const p = Math.min(Math.max(percent, 0.05), 99.95) / 100;
  return Math.log(p / (1 - p));
};
const percentOf = (value) => 100 / (1 + Math.exp(-value));
function baseLayout(x, y, more = {}) {
  const axis = (title) => ({
    title: { text: title, standoff: 8 }, gridcolor: themeColor('grid'), linecolor: themeColor('line'),
    zerolinecolor: themeColor('line'), tickcolor: themeColor('line'), automargin: true,
  });
  return {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { color: themeColor('text'), size: 12 },
    margin: { l: 55, r: 15, t: 12, b: 45 }, hovermode: 'closest', hoverlabel: { align: 'left' },
    legend: window.innerWidth < 700 ? { orientation: 'h', y: -0.2 } : { x: 1.02, y: 1 },
    ...more, xaxis: { ...axis(x), ...more.xaxis }, yaxis: { ...axis(y), ...more.yaxis },
  };
}

// Draws, and lets a click on a name of the legend hide or show that method on the whole page.
function plot(id, traces, layout) {
  const chart = document.getElementById(id);
  Plotly.react(chart, traces, layout, PLOT_OPTIONS);
  if (!chart.dataset.ready) {
    chart.dataset.ready = 'true';
    chart.on('plotly_legendclick', (event) => {
      const name = event.data[event.curveNumber].legendgroup;
      if (report.methods.some((method) => method.name === name)) toggleMethod(name);
      return false;
    });
    chart.on('plotly_legenddoubleclick', () => false);
  }
  return chart;
}

function marker(method, more = {}) {
  return { color: methodColor(method), symbol: method.symbol, size: 10, line: { color: themeColor('text'), width: 0.8 }, ...more };
}

// The mean of a method with error bars, and its runs behind it. `scale` maps percent to the axis.
function pairTraces(index, { runs, x, y }, scale, labels) {
  const method = report.methods[index];
  const shown = hidden.has(method.name) ? 'legendonly' : true;
  const bar = ([value, sd]) => sd === null ? undefined : {
    type: 'data', symmetric: false, color: methodColor(method), thickness: 1.3, width: 3,
    array: [scale(value + sd) - scale(value)], arrayminus: [scale(value) - scale(value - sd)],
  };
  const traces = [];
  if (runs.length > 1) {
    traces.push({
      x: runs.map((run) => scale(run[0])), y: runs.map((run) => scale(run[1])), mode: 'markers', hoverinfo: 'skip',
      marker: marker(method, { size: 5, line: { width: 0 } }), opacity: 0.5, legendgroup: method.name, showlegend: false, visible: shown,
    });
  }
  traces.push({
    x: [scale(x[0])], y: [scale(y[0])], error_x: bar(x), error_y: bar(y), mode: 'markers', name: escapeHtml(method.name), marker: marker(method),
    text: [`<b>${escapeHtml(method.name)}</b><br>${labels[0]}: ${x[2]}<br>${labels[1]}: ${y[2]}<br>${runs.length} run${runs.length > 1 ? 's' : ''}`],
    hovertemplate: '%{text}<extra></extra>', legendgroup: method.name, visible: shown,
  });
  return traces;
}

const escapeHtml = (text) => String(text).replace(/[&<>]/g, (sign) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[sign]);

// Round percentages, the coarsest that give at least four ticks.
function logitTicks(low, high) {
  const steps = [10, 5, 2, 1, 0.5, 0.2, 0.1].map((step) => Array.from({ length: Math.round(100 / step) - 1 }, (_, i) => +((i + 1) * step).toFixed(1)));
  let shown = [];
  for (const ticks of steps) {
    shown = ticks.filter((tick) => tick >= low && tick <= high);
    if (shown.length >= 4) break;
  }
  return { tickvals: shown.map(logit), ticktext: shown.map(String) };
}

function scatterColumns() {
  const columns = Object.keys(report.scatter);
  return columns.map((name) => [name, name === report.average ? `average of ${report.shifts.length} shifts` : setName(name)]);
}

function scatterRange(entry) {
  const points = Object.entries(entry.points).filter(([index]) => !hidden.has(report.methods[index].name)).flatMap(([, { runs }]) => runs);
  const curves = Object.entries(entry.curves).filter(([index]) => !hidden.has(report.methods[index].name)).flatMap(([, line]) => line.map((point) => point.slice(1)));
  const all = points.concat(curves);
  return [0, 1].map((axis) => {
    const values = (all.length ? all : [[30, 30], [70, 70]]).map((pair) => logit(pair[axis]));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = Math.max(0.12 * (high - low), 0.15);
    return [low - pad, high + pad];
  });
}

let scatterColumn = Object.keys(report.scatter)[0];

function drawScatter() {
  const entry = report.scatter[scatterColumn];
  const label = scatterColumns().find(([name]) => name === scatterColumn)[1];
  const [xRange, yRange] = scatterRange(entry);
  const traces = [];
  const soft = themeColor('soft');
  if (entry.line) {
    traces.push({ x: entry.reference.map((pair) => logit(pair[0])), y: entry.reference.map((pair) => logit(pair[1])), mode: 'markers',
      marker: { color: soft, size: 3.5 }, opacity: 0.6, hoverinfo: 'skip', name: 'reference models', legendgroup: 'reference' });
    traces.push({ x: entry.line.map((pair) => logit(pair[0])), y: entry.line.map((pair) => logit(pair[1])), mode: 'lines',
      line: { color: soft, width: 1.2 }, hoverinfo: 'skip', showlegend: false, legendgroup: 'reference' });
  }
  const ends = [Math.max(xRange[0], yRange[0]), Math.min(xRange[1], yRange[1])];
  if (ends[0] < ends[1]) {
    const far = [logit(0.1), logit(99.9)];
    traces.push({ x: far, y: far, mode: 'lines', line: { color: soft, width: 1, dash: 'dash' }, hoverinfo: 'skip', name: 'y = x', legendgroup: 'y=x' });
  }
  for (const [index, line] of Object.entries(entry.curves)) {
    const method = report.methods[index];
    traces.push({
      x: line.map((point) => logit(point[1])), y: line.map((point) => logit(point[2])), mode: 'lines+markers', legendgroup: method.name,
      line: { color: methodColor(method), width: 1.6 }, marker: { color: methodColor(method), size: 5.5 }, showlegend: false,
      text: line.map((point) => `<b>${escapeHtml(method.name)}</b>, α = ${point[0]}<br>${setName(report.id_set)}: ${point[1].toFixed(1)}<br>${label}: ${point[2].toFixed(1)}`),
      hovertemplate: '%{text}<extra></extra>', visible: hidden.has(method.name) ? 'legendonly' : true,
    });
  }
  for (const [index, point] of Object.entries(entry.points)) traces.push(...pairTraces(index, point, logit, [setName(report.id_set), label]));
  const ticks = (range) => logitTicks(...range.map(percentOf));
  const chart = plot('scatter-chart', traces, baseLayout(`${setName(report.id_set)} accuracy (%)`, `${label} (%)`, {
    xaxis: { range: xRange, ...ticks(xRange) }, yaxis: { range: yRange, ...ticks(yRange) },
  }));
  chart.setAttribute('aria-label', `Scatter of accuracy on ${setName(report.id_set)} against ${label}`);
  if (!chart.dataset.ticks) {
    chart.dataset.ticks = 'true';
    chart.on('plotly_relayout', (change) => {
      // After a zoom, ticks for what is shown; not after a change of the ticks themselves.
      if (!Object.keys(change).some((key) => key.includes('range'))) return;
      const update = {};
      for (const axis of ['xaxis', 'yaxis']) {
        const { tickvals, ticktext } = ticks(chart.layout[axis].range);
        update[`${axis}.tickvals`] = tickvals;
        update[`${axis}.ticktext`] = ticktext;
      }
      Plotly.relayout(chart, update);
    });
  }
}

function drawRobustness() {
  const columns = Object.keys(report.robustness);
  const traces = report.methods.flatMap((method, index) => {
    const found = columns.filter((column) => report.robustness[column][index]);
    if (!found.length) return [];
    const stats = found.map((column) => report.robustness[column][index]);
    return [{
      x: found.map(setName), y: stats.map(([value]) => value), mode: 'markers', name: escapeHtml(method.name), marker: marker(method),
      error_y: { type: 'data', array: stats.map(([, sd]) => sd ?? 0), color: methodColor(method), thickness: 1.3, width: 3 },
      text: stats.map(([, , text], i) => `<b>${escapeHtml(method.name)}</b><br>${setName(found[i])}: ${text}`),
      hovertemplate: '%{text}<extra></extra>', legendgroup: method.name, visible: hidden.has(method.name) ? 'legendonly' : true,
    }];
  });
  plot('robustness-chart', traces, baseLayout('', 'Effective robustness (points)', {
    xaxis: { type: 'category', categoryarray: columns.map(setName) }, yaxis: { zeroline: true, zerolinecolor: themeColor('soft') },
  })).setAttribute('aria-label', 'Effective robustness of each method on each shift; the table below has the numbers');
}

let groupSet = Object.keys(report.groups)[0];

function drawGroups() {
  const traces = Object.entries(report.groups[groupSet]).flatMap(([index, point]) =>
    pairTraces(index, point, (value) => value, ['Weighted average', 'Worst group']));
  plot('groups-chart', traces, baseLayout('Average weighted by training groups (%)', 'Worst group (%)'))
    .setAttribute('aria-label', `Scatter of weighted average against worst group of ${setName(groupSet)}`);
}

let reliabilitySet = Object.keys(report.reliability)[0];

function drawReliability() {
  const few = 10;
  const traces = [{ x: [0, 1], y: [0, 1], mode: 'lines', line: { color: themeColor('soft'), dash: 'dash', width: 1 }, hoverinfo: 'skip', name: 'calibrated', legendgroup: 'calibrated' }];
  for (const [index, bins] of Object.entries(report.reliability[reliabilitySet])) {
    const method = report.methods[index];
    traces.push({
      x: bins.map((bin) => bin[0]), y: bins.map((bin) => bin[1]), mode: 'lines+markers', name: escapeHtml(method.name), legendgroup: method.name,
      line: { color: methodColor(method), width: 1.4 }, marker: marker(method, { size: 8, opacity: bins.map((bin) => (bin[2] < few ? 0.3 : 1)) }),
      text: bins.map((bin) => `<b>${escapeHtml(method.name)}</b><br>confidence ${bin[0].toFixed(2)}, accuracy ${bin[1].toFixed(2)}<br>${bin[2]} predictions`),
      hovertemplate: '%{text}<extra></extra>', visible: hidden.has(method.name) ? 'legendonly' : true,
    });
  }
  plot('reliability-chart', traces, baseLayout('Confidence', 'Accuracy', { xaxis: { range: [0, 1.02] }, yaxis: { range: [0, 1.02] } }))
    .setAttribute('aria-label', `Reliability diagram on ${setName(reliabilitySet)}`);
}

function dropSection(id) {
  for (const part of findAll(`#${id}, nav a[href="#${id}"]`)) part.remove();
}

if (document.getElementById('scatter-chart')) {
  const columns = scatterColumns();
  if (columns.length) {
    addChoice('#scatter', 'scatter-column', 'Against', columns, (value) => { scatterColumn = value; drawScatter(); });
    redrawing.push(drawScatter);
  } else {
    dropSection('scatter');
  }
}
if (document.getElementById('robustness-chart')) redrawing.push(drawRobustness);
if (document.getElementById('groups-chart')) {
  const names = findAll('.group').map((part) => part.dataset.set);
  const show = (value) => {
    groupSet = value;
    findAll('.group').forEach((part) => (part.hidden = part.dataset.set !== value));
    find('#groups figure').hidden = !report.groups[value]; // no averages without the sizes of the training groups
    if (report.groups[value]) drawGroups();
  };
  if (names.length > 1) addChoice('#groups', 'group-set', 'Set', names.map((name) => [name, setName(name)]), show);
  groupSet = names[0];
  redrawing.push(() => show(groupSet));
}
if (reliabilitySet) {
  const names = Object.keys(report.reliability);
  addChoice('#reliability', 'reliability-set', 'Set', names.map((name) => [name, setName(name)]), (value) => { reliabilitySet = value; drawReliability(); });
  redrawing.push(drawReliability);
} else {
  dropSection('reliability');
}
