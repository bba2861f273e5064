'use strict';
const $ = id => document.getElementById(id);
const {maps, lens, scale} = JSON.parse($('data').textContent);
const KINDS = {
  cross: ['decoder to encoder', 'target', 'source'], self: ['self-attention', 'token', 'tokens'],
  encoder: ['encoder', 'token', 'tokens'], decoder: ['decoder', 'token', 'tokens'], '': ['', 'target', 'source'],
};
const canvas = $('cells').querySelector('canvas');
const dark = matchMedia('(prefers-color-scheme: dark)');
const clamp = (low, x, high) => Math.max(low, Math.min(x, high));
const make = (parent, tag, properties = {}) => parent.appendChild(Object.assign(document.createElement(tag), properties));
const isolated = text => `\u2068${text}\u2069`;  // a right-to-left token does not reorder the line
const number = x => (x < 0 ? '\u2212' : '') + (Math.abs(x) < .001 && x ? Math.abs(x).toExponential(1) : Math.abs(x).toFixed(3));
let map, kind = 0, layer, head = 0, row = null, column = null, kept = false, stretched = true, cell = 24, ramp;
let weights, T, S, panels, last;  // of the present map; panel 0 of a layer is the mean over heads
let strips = [];

// Values. Head 0 is the mean over heads, and -1 the attention rollout.
function panel(l, h) {
  if (h < 0) return map.rollout.slice(l * T * S, (l + 1) * T * S);
  return weights.slice((l * panels + h) * T * S, (l * panels + h + 1) * T * S);
}
function name(l, h) {
  const of = h < 0 ? 'rollout from the inputs' : h ? `head ${h} of ${map.heads}` :
    map.heads > 1 ? `mean of ${map.heads} heads` : 'the only head';
  return `Layer ${l + 1} of ${map.layers} \u00b7 ${of}`;
}
const end = values => stretched ? values.reduce((a, b) => Math.max(a, b), 1) : 1000;
const colour = (value, most) => ramp[Math.round(255 * Math.min(1, value / most))];
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const inkOn = ([r, g, b]) => .3 * r + .59 * g + .11 * b > 140 ? '#14181f' : '#fff';

function mix() {  // 256 colours between the stops of the present scheme
  const stops = scale[dark.matches ? 'dark' : 'light'].map(s => [1, 3, 5].map(i => parseInt(s.slice(i, i + 2), 16)));
  ramp = Array.from({length: 256}, (_, i) => {
    const x = i / 255 * (stops.length - 1), j = Math.min(Math.floor(x), stops.length - 2);
    return [...stops[j].map((c, k) => Math.round(c + (x - j) * (stops[j + 1][k] - c))), 255];
  });
}

function pixels(target, width, height, values, colours) {  // one pixel a value
  target.width = width; target.height = height;
  const context = target.getContext('2d'), image = context.createImageData(width, height);
  values.forEach((v, i) => image.data.set(colours(v), 4 * i));
  context.putImageData(image, 0, 0);
}

function thumbnails() {
  for (const button of $('views').querySelectorAll('button')) {
    const values = panel(+button.dataset.layer, +button.dataset.head), most = end(values);
    pixels(button.firstChild, S, T, values, v => colour(v, most));
  }
  pixels($('ramp'), 256, 1, [...Array(256).keys()], v => colour(v, 255));
}

// The heat map.
function fit() {  // the cell's side: as large as the window allows, never too small to point at
  const room = $('frame').clientWidth - $('rows').offsetWidth - 8;
  const below = innerHeight - $('frame').getBoundingClientRect().top - scrollY - 110;  // less labels and footer
  cell = Math.floor(clamp(10, Math.min(room / S, Math.max(360, below, 14 * T) / T), 64));
  const size = clamp(9, cell * .62, 15) + 'px';
  for (const [box, side] of [[$('rows'), 'height'], [$('columns'), 'width']]) {
    box.style.fontSize = size;
    for (const label of box.children) label.style[side] = cell + 'px';
  }
  for (const {firstChild: text} of $('columns').children) {
    text.className = '';
    if (text.offsetWidth > cell - 2)
      text.className = /^[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}\u3000-\u303f\u30fc\uff00-\uff60]+$/u
        .test(text.textContent) ? 'upright' : 'turned';
  }
}

function draw() {
  const values = panel(layer, head), most = end(values), gap = cell < 16 ? .5 : 1;
  const ratio = Math.min(devicePixelRatio, 4096 / (cell * Math.max(T, S)));  // browsers refuse huge canvases
  canvas.width = S * cell * ratio; canvas.height = T * cell * ratio;
  canvas.style.width = S * cell + 'px'; canvas.style.height = T * cell + 'px';
  const context = canvas.getContext('2d');
  context.scale(ratio, ratio);
  context.font = `${Math.round(cell * .28)}px system-ui, sans-serif`;
  context.textAlign = 'center'; context.textBaseline = 'middle';
  values.forEach((v, i) => {
    const x = i % S * cell, y = Math.floor(i / S) * cell, of = colour(v, most);
    context.fillStyle = css(of);
    context.fillRect(x, y, cell - gap, cell - gap);
    if (cell < 44) return;
    context.fillStyle = inkOn(of);
    context.fillText((v / 1000).toFixed(2), x + cell / 2, y + cell / 2);
  });
  $('view').textContent = name(layer, head);
  $('facts').textContent = facts();
  canvas.setAttribute('aria-label', `Attention weights, ${name(layer, head)}, ${T} target by ${S} source tokens`);
  $('most').textContent = most === 1000 ? '1' : (most / 1000).toFixed(3);
  $('range').textContent = stretched ? 'show 0 to 1' : 'show 0 to largest';
  for (const button of document.querySelectorAll('#views button')) {
    const on = +button.dataset.layer === layer && +button.dataset.head === head;
    button.setAttribute('aria-checked', on); button.tabIndex = on ? 0 : -1;
  }
  for (const line of document.querySelectorAll('#heads tbody tr'))
    line.classList.toggle('on', +line.dataset.layer === layer && +line.dataset.head === head);
  vectors();
  point(row, column);
}

function facts() {
  if (head < 0) return 'how much of each input has reached each position, through weights and residual stream';
  const heads = head || map.heads === 1 ? [Math.max(head - 1, 0)] : [...Array(map.heads).keys()];
  const mean = values => heads.reduce((sum, h) => sum + values[layer][h], 0) / heads.length;
  const said = [];
  if (map.entropy) said.push(`entropy ${mean(map.entropy).toFixed(2)} bits of at most ${Math.log2(S).toFixed(2)}`);
  if (map.changes && heads.length === 1) said.push(`without this head the loss changes by ${number(mean(map.changes))} nats`);
  return said.join(' \u00b7 ');
}

// What is pointed at: a row, a column, both (a cell) or nothing.
function point(t, s) {
  row = t; column = s;
  for (const label of document.querySelectorAll('#map .on')) label.classList.remove('on');
  const show = (id, on) => $(id).style.display = on ? 'block' : 'none';
  show('across', t !== null); show('down', s !== null); show('tip', t !== null && s !== null);
  const values = panel(layer, head), tip = $('tip');
  const of = t !== null ? Array.from({length: S}, (_, i) => values[t * S + i]) : null;
  const to = t === null && s !== null ? Array.from({length: T}, (_, i) => values[i * S + s]) : null;
  for (const strip of strips) strip.show(strip.targets ? t : null, strip.sources ? s : null, strip.sources && of || strip.targets && to);
  if (t !== null) {
    $('rows').children[t].classList.add('on');
    Object.assign($('across').style, {top: t * cell - 1 + 'px', height: cell + 1 + 'px'});
  }
  if (s !== null) {
    $('columns').children[s].classList.add('on');
    Object.assign($('down').style, {left: s * cell - 1 + 'px', width: cell + 1 + 'px'});
  }
  $('says').textContent = t === null && s === null ? '' :
    of ? `${isolated(map.rows[t])} attends to ${list(of, map.columns)}` : `${isolated(map.columns[s])} is attended to by ${list(to, map.rows)}`;
  marks();
  if (t === null || s === null) return;
  tip.replaceChildren();
  make(tip, 'bdi', {textContent: map.rows[t]}); tip.append(' \u2192 ');
  make(tip, 'bdi', {textContent: map.columns[s]});
  tip.append(': ' + (values[t * S + s] / 1000).toFixed(3));
  const below = t * cell - tip.offsetHeight - 6 < -20, left = (s + .5) * cell - tip.offsetWidth / 2;
  tip.style.top = (below ? (t + 1) * cell + 6 : t * cell - tip.offsetHeight - 6) + 'px';
  tip.style.left = clamp(0, left, Math.max(0, S * cell - tip.offsetWidth)) + 'px';
}

function list(values, tokens) {  // the five largest
  const order = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, 5).filter(i => values[i] > 0);
  return order.map(i => `${isolated(tokens[i])} (${(values[i] / 1000).toFixed(2)})`).join(', ') || 'nothing';
}

const hover = (t, s) => { if (!kept) point(t, s); };
const keep = (t, s) => { kept = !(kept && row === t && column === s); point(kept ? t : null, kept ? s : null); };
const leave = () => hover(null, null);
const arrows = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

// Tokens in a line, or the picture that they are parts of, shaded by the weights of what is pointed at.
function strip(label, names, picture, targets, sources) {
  const box = make($('strips'), 'div', {className: 'strip'});
  make(box, 'small', {textContent: label});
  const place = i => targets ? [i, null] : [null, i];
  return Object.assign((picture ? pictureStrip : tokenStrip)(box, label, names, picture, place), {targets, sources});
}

function tokenStrip(box, label, names, _, place, first = names.length) {
  const line = make(box, 'div', {className: 'tokens'});
  line.setAttribute('role', 'listbox'); line.setAttribute('aria-label', label);
  const tokens = names.slice(0, first).map((text, i) => {
    const token = make(line, 'span', {textContent: text, dir: 'auto', tabIndex: i ? -1 : 0});
    token.setAttribute('role', 'option');
    token.addEventListener('pointerenter', () => hover(...place(i)));
    token.addEventListener('pointerleave', leave);
    token.addEventListener('click', () => keep(...place(i)));
    token.addEventListener('focus', () => token.matches(':focus-visible') && point(...place(i)));
    token.addEventListener('blur', leave);
    return token;
  });
  line.addEventListener('keydown', event => {
    const i = tokens.indexOf(document.activeElement), [dt, ds] = arrows[event.key] ?? [0, 0];
    const to = {Home: 0, End: tokens.length - 1}[event.key] ?? clamp(0, i + dt + ds, tokens.length - 1);
    if (event.key === 'Enter' || event.key === ' ') keep(...place(i));
    else if (event.key === 'Escape') { kept = false; point(null, null); }
    else if (event.key in arrows || event.key === 'Home' || event.key === 'End') { kept = false; tokens[to].focus(); }
    else return;
    event.preventDefault();
  });
  return {show(t, s, values) {
    const on = t ?? s, most = values ? Math.max(...values, 1) : 1;
    tokens.forEach((token, i) => {
      const of = values && colour(values[i], most);
      token.classList.toggle('on', i === on); token.setAttribute('aria-selected', i === on);
      token.style.background = of ? css(of) : ''; token.style.color = of ? inkOn(of) : '';
      if (on !== null) token.tabIndex = i === on ? 0 : -1;
    });
  }};
}

function pictureStrip(box, label, names, picture, place) {
  const [R, C] = picture.grid, first = names.length - R * C, frames = picture.kind === 'frames';
  const width = frames ? clamp(360, C * 9, 900) : Math.round(clamp(R * C, 300 * picture.size[0] / picture.size[1], 420));
  const height = frames ? 130 : Math.round(width * picture.size[1] / picture.size[0]);
  const inside = make(box, 'div', {className: 'picture'});
  const whole = first ? tokenStrip(inside, label, names, null, place, first) : null;  // positions outside the picture
  const drawn = make(inside, 'canvas', {tabIndex: 0}), context = drawn.getContext('2d');
  const image = new Image();
  let shown = [null, null, null];
  drawn.setAttribute('role', 'application');
  drawn.setAttribute('aria-label', `${label}: ${frames ? `${C} frames of a sound` : `${R} by ${C} patches of a picture`}; arrow keys move`);
  drawn.width = width * 2; drawn.height = height * 2;
  drawn.style.width = width + 'px'; drawn.style.aspectRatio = `${width} / ${height}`;
  context.scale(2, 2);
  image.onload = () => show(...shown);
  image.src = picture.url;
  function show(t, s, values) {
    shown = [t, s, values];
    whole?.show(t, s, values);
    context.imageSmoothingEnabled = frames;
    context.drawImage(image, 0, 0, width, height);
    const w = width / C, h = height / R, most = values ? Math.max(...values.slice(first), 1) : 1;
    if (values) for (let i = 0; i < R * C; i++) {  // what is not attended to fades
      context.fillStyle = `rgb(${dark.matches ? '21 24 29' : '252 252 253'} / ${.88 * (1 - values[first + i] / most)})`;
      context.fillRect(i % C * w, Math.floor(i / C) * h, w + .5, h + .5);
    }
    const on = (t ?? s) - first;
    if ((t ?? s) === null || on < 0) return;
    context.strokeStyle = getComputedStyle(document.body).getPropertyValue('--mark'); context.lineWidth = 2.5;
    context.strokeRect(on % C * w + 1, Math.floor(on / C) * h + 1, Math.max(w - 2, 2), h - 2);
  }
  const at = event => {
    const b = drawn.getBoundingClientRect();
    return first + clamp(0, Math.floor((event.clientY - b.top) / b.height * R), R - 1) * C
      + clamp(0, Math.floor((event.clientX - b.left) / b.width * C), C - 1);
  };
  drawn.addEventListener('pointermove', event => hover(...place(at(event))));
  drawn.addEventListener('pointerleave', leave);
  drawn.addEventListener('click', event => keep(...place(at(event))));
  drawn.addEventListener('blur', leave);
  drawn.addEventListener('keydown', event => {
    if (event.key === 'Escape') { kept = false; return point(null, null); }
    if (!(event.key in arrows)) return;
    event.preventDefault();
    const now = shown[0] ?? shown[1];
    if (now === null || now < first) return point(...place(first));
    const [dr, dc] = arrows[event.key], r = Math.floor((now - first) / C) + dr, c = (now - first) % C + dc;
    point(...place(first + clamp(0, r, R - 1) * C + clamp(0, c, C - 1)));
  });
  return {show};
}

// Queries, keys and values of the chosen head, and a mark at what is pointed at.
function vectors() {
  const shown = Object.entries(map.vectors);
  $('vectors').hidden = !shown.length;
  if (!shown.length) return;
  const box = $('vectors').querySelector('.scroll'), one = head > 0 || map.heads === 1;
  $('vectors').querySelector('p').textContent = one ?
    'A row is a position, a column one number of its vector; orange is negative, blue is positive.' : 'Choose a single head to see its vectors.';
  box.replaceChildren();
  if (one) for (const [title, {shape: [, heads, length, size], largest, data}] of shown) {
    const bytes = Int8Array.from(atob(data), c => c.charCodeAt(0));
    const group = Math.floor((Math.max(head, 1) - 1) / (map.heads / heads));  // heads may share keys and values
    const start = (layer * heads + group) * length * size;
    const figure = make(box, 'figure');
    make(figure, 'figcaption', {textContent: `${title}, ${length} \u00d7 ${size}, largest magnitude of the model ${largest}`});
    const drawn = make(figure, 'canvas'), stripes = clamp(2, Math.floor(240 / length), 14);
    drawn.dataset.title = title; drawn.setAttribute('role', 'img');
    drawn.setAttribute('aria-label', `${title} of ${length} positions`);
    const middle = dark.matches ? [35, 37, 41] : [242, 243, 245], ends = dark.matches ? [[255, 164, 92], [107, 157, 232]] : [[194, 65, 12], [49, 111, 201]];
    pixels(drawn, size, length, bytes.slice(start, start + length * size), v => {
      const x = Math.abs(v) / 127, to = ends[v < 0 ? 0 : 1];
      return [...middle.map((m, k) => Math.round(m + x * (to[k] - m))), 255];
    });
    drawn.style.width = Math.min(size * 6, 380) + 'px'; drawn.style.height = length * stripes + 'px';
  }
}

function marks() {
  for (const drawn of document.querySelectorAll('#vectors canvas')) {
    const at = drawn.dataset.title === 'queries' ? row : column, stripe = parseFloat(drawn.style.height) / drawn.height;
    drawn.style.boxShadow = '';
    drawn.parentNode.style.position = 'relative';
    drawn.parentNode.querySelector('i')?.remove();
    if (at === null) continue;
    make(drawn.parentNode, 'i').style.cssText = `position:absolute;pointer-events:none;border:1px solid var(--mark);` +
      `left:${drawn.offsetLeft}px;width:${drawn.offsetWidth}px;top:${drawn.offsetTop + at * stripe}px;height:${stripe}px`;
  }
}

// Tables: the output of each layer, and a line for each head.
function lensTable() {
  $('lens').hidden = false;
  const table = make($('lens').querySelector('.scroll'), 'table'), top = make(make(table, 'thead'), 'tr');
  make(top, 'th', {scope: 'col', textContent: 'layer'});
  for (const text of lens.positions) make(top, 'th', {scope: 'col', textContent: text, dir: 'auto'});
  const body = make(table, 'tbody');
  for (let l = lens.outputs.length - 1; l >= 0; l--) {
    const line = make(body, 'tr');
    make(line, 'th', {scope: 'row', textContent: `layer ${l + 1}`});
    lens.outputs[l].forEach((names, t) => {
      const p = lens.thousandths[l][t], of = colour(p[0], 1000);
      const td = make(line, 'td', {textContent: names[0], dir: 'auto'});
      td.title = names.map((n, k) => `${n}  ${(p[k] / 1000).toFixed(3)}`).join('\n');
      td.style.background = css(of); td.style.color = inkOn(of);
    });
  }
}

let order = ['layer', 1];
function headTable() {
  const box = $('heads').querySelector('.scroll'), mean = Array.from({length: map.layers}, () => []);
  const lines = [];
  for (let l = 0; l < map.layers; l++) for (let h = 0; h < map.heads; h++) {
    const values = panel(l, h + 1);
    let far = 0;
    values.forEach((v, i) => far += v / 1000 * Math.abs(i % S - Math.floor(i / S)));
    const line = {layer: l + 1, head: h + 1};
    if (map.entropy) line['entropy, bits'] = map.entropy[l][h];
    if (map.rollout) line['mean distance'] = far / T;
    if (map.changes) line['change of loss without it, nats'] = map.changes[l][h];
    lines.push(line);
  }
  const names = Object.keys(lines[0]);
  if (!names.includes(order[0])) order = ['layer', 1];
  lines.sort((a, b) => order[1] * (a[order[0]] - b[order[0]]) || a.layer - b.layer || a.head - b.head);
  $('heads').hidden = names.length < 3;
  $('heads').querySelector('p').textContent = map.changes ?
    'The loss is that of what the whole model says: a head whose removal raises it matters here.' :
    map.entropy ? 'The change of a metric without each head was left out, as it would take long: inspection.inside.ablate_heads computes it.' : '';
  box.replaceChildren();
  const table = make(box, 'table'), top = make(make(table, 'thead'), 'tr'), body = make(table, 'tbody');
  for (const text of names) {
    const th = make(top, 'th', {scope: 'col'});
    th.setAttribute('aria-sort', order[0] !== text ? 'none' : order[1] > 0 ? 'ascending' : 'descending');
    make(th, 'button', {type: 'button', textContent: text + (order[0] !== text ? '' : order[1] > 0 ? ' \u2191' : ' \u2193'), onclick: () => {
      order = [text, order[0] === text ? -order[1] : names.indexOf(text) < 2 ? 1 : -1];
      headTable(); draw();
      $('heads').querySelectorAll('thead button')[names.indexOf(text)].focus();
    }});
  }
  for (const line of lines) {
    const tr = make(body, 'tr'), h = map.heads > 1 ? line.head : 0;
    Object.assign(tr.dataset, {layer: line.layer - 1, head: h});
    make(tr, 'td', {textContent: line.layer});
    make(make(tr, 'td'), 'button', {type: 'button', textContent: line.head, onclick: () => choose(line.layer - 1, h)})
      .setAttribute('aria-label', `show layer ${line.layer}, head ${line.head}`);
    for (const text of names.slice(2)) make(tr, 'td', {textContent: number(line[text])});
  }
}

// Pictures to keep.
const xml = text => text.replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
function drawing() {
  const values = panel(layer, head), most = end(values), side = 22, size = side * .58;
  const longest = tokens => Math.min(Math.max(...tokens.map(t => [...t].length)), 24) * size * .64 + 10;
  const left = longest(map.rows), above = longest(map.columns) + 34, cut = t => xml([...t].length > 24 ? [...t].slice(0, 23).join('') + '\u2026' : t);
  const parts = [`<rect width="100%" height="100%" fill="#ffffff"/>`,
    `<text x="${left}" y="18" font-size="14" fill="#1b1f27">${xml(name(layer, head))}</text>`];
  values.forEach((v, i) => parts.push(
    `<rect x="${left + i % S * side}" y="${above + Math.floor(i / S) * side}" width="${side - 1}" height="${side - 1}" fill="${css(colour(v, most)).replace(/ /g, ',')}"/>`));
  map.rows.forEach((t, i) => parts.push(`<text x="${left - 6}" y="${above + (i + .7) * side}" text-anchor="end">${cut(t)}</text>`));
  map.columns.forEach((t, i) => parts.push(`<text transform="translate(${left + (i + .7) * side} ${above - 6}) rotate(-90)">${cut(t)}</text>`));
  const svg = $('blank').cloneNode(), width = left + S * side + 12, tall = above + T * side + 12;
  for (const [key, value] of Object.entries({width, height: tall, viewBox: `0 0 ${width} ${tall}`, 'font-family': 'system-ui, sans-serif', 'font-size': size})) svg.setAttribute(key, value);
  svg.removeAttribute('hidden'); svg.removeAttribute('id');
  svg.innerHTML = parts.join('');
  return {text: new XMLSerializer().serializeToString(svg), width, tall};
}
function save(blob, suffix) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = `attention-layer-${layer + 1}-${head < 0 ? 'rollout' : head ? `head-${head}` : 'mean'}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
$('svg').addEventListener('click', () => save(new Blob([drawing().text], {type: 'image/svg+xml'}), 'svg'));
$('png').addEventListener('click', () => {
  const {text, width, tall} = drawing(), image = new Image(), zoom = Math.min(3, 8000 / Math.max(width, tall));
  image.onload = () => {
    const page = Object.assign(document.createElement('canvas'), {width: width * zoom, height: tall * zoom});
    page.getContext('2d').drawImage(image, 0, 0, page.width, page.height);
    page.toBlob(blob => save(blob, 'png'));
  };
  image.src = 'data:image/svg+xml,' + encodeURIComponent(text);
});

function choose(l, h) { layer = l; head = h; draw(); }

function use(k) {  // show one kind of attention
  kind = k; map = maps[k]; kept = false; row = column = null;
  T = map.rows.length; S = map.columns.length; panels = map.heads + 1;
  weights = Int16Array.from(map.thousandths);
  last = map.heads > 1 ? map.heads : 0;  // the mean of one head is that head: offer it once
  const shown = [...Array(last + 1).keys(), ...(map.rollout ? [-1] : [])];
  if (layer === undefined || layer >= map.layers) layer = map.layers - 1;
  if (!shown.includes(head)) head = 0;
  for (const button of $('kinds').children) {
    button.setAttribute('aria-checked', +button.dataset.kind === k); button.tabIndex = +button.dataset.kind === k ? 0 : -1;
  }
  // The grid of small pictures: a row a layer, a column a head, the mean first.
  const side = Math.floor(clamp(16, 340 / shown.length, 72)), height = Math.round(side * clamp(.5, T / S, 1.5));
  $('views').replaceChildren();
  $('views').style.gridTemplateColumns = `max-content repeat(${shown.length}, ${side}px)`;
  make($('views'), 'small');
  for (const h of shown) make($('views'), 'small', {textContent: h > 0 ? h : h ? side < 40 ? 'r' : 'rollout' : last ? side < 30 ? 'x\u0304' : 'mean' : 1,
    title: h < 0 ? 'attention rollout' : ''});
  for (let l = 0; l < map.layers; l++) {
    make($('views'), 'small', {textContent: l + 1});
    for (const h of shown) {
      const button = make($('views'), 'button', {type: 'button', title: name(l, h), onclick: () => choose(l, h)});
      Object.assign(button.dataset, {layer: l, head: h});
      button.setAttribute('role', 'radio'); button.setAttribute('aria-label', name(l, h));
      make(button, 'canvas').style.cssText = `width:${side}px;height:${height}px;` +
        (S < side && T < height ? 'image-rendering:pixelated' : '');
    }
  }
  for (const [box, tokens, place] of [[$('rows'), map.rows, i => [i, null]], [$('columns'), map.columns, i => [null, i]]]) {
    box.replaceChildren();
    tokens.forEach((token, i) => {
      const label = make(make(box, 'div'), 'span', {textContent: token, dir: 'auto', title: token});
      label.addEventListener('pointerenter', () => hover(...place(i)));
      label.addEventListener('pointerleave', leave);
      label.addEventListener('click', () => keep(...place(i)));
    });
  }
  $('strips').replaceChildren();
  const [, target, source] = KINDS[map.kind], [rowPicture, columnPicture] = map.pictures;
  strips = map.rollout ? [strip(rowPicture ? rowPicture.kind === 'frames' ? 'spectrogram' : 'picture' : 'tokens', map.rows, rowPicture, true, true)] :
    [strip(target, map.rows, rowPicture, true, false), strip(source, map.columns, columnPicture, false, true)];
  thumbnails(); headTable(); fit(); draw();
}

function radios(box, step) {  // arrow keys choose within a group
  box.addEventListener('keydown', event => {
    if (!(event.key in arrows)) return;
    event.preventDefault();
    step(...arrows[event.key]);
    box.querySelector('[aria-checked=true]').focus();
  });
}
if (maps.length > 1) maps.forEach((m, k) => {
  const button = make($('kinds'), 'button', {type: 'button', textContent: KINDS[m.kind][0], onclick: () => use(k)});
  button.dataset.kind = k; button.setAttribute('role', 'radio');
});
radios($('kinds'), (dl, dh) => use(clamp(0, kind + dl + dh, maps.length - 1)));
radios($('views'), (dl, dh) => {
  const shown = [...Array(last + 1).keys(), ...(map.rollout ? [-1] : [])];
  choose(clamp(0, layer + dl, map.layers - 1), shown[clamp(0, shown.indexOf(head) + dh, shown.length - 1)]);
});
canvas.addEventListener('keydown', event => {
  const [t, s] = [row ?? 0, column ?? 0], [dt, ds] = arrows[event.key] ?? [0, 0];
  const places = {Home: [t, 0], End: [t, S - 1], Escape: [null, null]};
  if (!(event.key in places || event.key in arrows)) return;
  event.preventDefault(); kept = false;
  point(...places[event.key] ?? (row === null ? [0, 0] : [clamp(0, t + dt, T - 1), clamp(0, s + ds, S - 1)]));
});
const cellAt = event => {
  const box = canvas.getBoundingClientRect();
  return [clamp(0, Math.floor((event.clientY - box.top) / cell), T - 1), clamp(0, Math.floor((event.clientX - box.left) / cell), S - 1)];
};
canvas.addEventListener('pointermove', event => hover(...cellAt(event)));
canvas.addEventListener('click', event => keep(...cellAt(event)));
canvas.addEventListener('pointerleave', event => event.pointerType === 'mouse' && leave());
canvas.addEventListener('focus', () => canvas.matches(':focus-visible') && point(row ?? 0, column ?? 0));
canvas.addEventListener('blur', leave);
$('range').addEventListener('click', () => { stretched = !stretched; thumbnails(); draw(); });
dark.addEventListener('change', () => { mix(); thumbnails(); draw(); });
addEventListener('resize', () => { fit(); draw(); });
mix();
if (lens) lensTable();
use(0);
