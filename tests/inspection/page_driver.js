'use strict';  // clicks and types in the page of attention, and writes what it sees into it
const found = {}, one = s => document.querySelector(s), all = s => [...document.querySelectorAll(s)];
const press = (element, key) => element.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const over = element => element.dispatchEvent(new PointerEvent('pointerenter'));
const says = () => one('#says').textContent.replace(/[\u2068\u2069]/g, '');
addEventListener('error', event => found.error = event.message);
try {
  found.kinds = all('#kinds button').map(b => b.textContent);
  found.views = all('#views button').length;
  over(one('.tokens span')); found.hover = says(); found.tip = one('#tip').style.display;
  found.shaded = all('.strip:nth-child(2) .tokens span').map(s => s.style.background);
  all('#views button')[2].click(); found.view = one('#view').textContent; found.facts = one('#facts').textContent;
  found.head = says();
  const map = one('#cells canvas');
  press(map, 'ArrowDown'); press(map, 'ArrowDown'); press(map, 'End'); found.cell = one('#tip').textContent;
  press(map, 'Escape'); found.escaped = says();
  all('#heads thead button')[2].click();
  found.sorted = all('#heads tbody tr').map(r => [...r.children].map(c => c.textContent));
  one('#heads tbody button').click(); found.chosen = one('#view').textContent;
  found.vectors = all('#vectors figcaption').length;
  press(one('#kinds button'), 'ArrowRight');
  found.kind = one('#kinds [aria-checked=true]').textContent;
  found.rollout = all('#views button').filter(b => b.dataset.head === '-1').length;
  found.strips = all('.strip').length;
  const canvas = one('.picture canvas');
  press(canvas, 'ArrowRight'); found.patch = says();
  found.lens = all('#lens tbody tr').map(r => [...r.children].map(c => c.textContent));
  found.svg = drawing().text;
  found.tabs = all('button, [tabindex="0"]').filter(e => e.tabIndex === 0 && !e.closest('[hidden]') &&
    !e.textContent.trim() && !e.getAttribute('aria-label') && !e.title && !e.getAttribute('aria-labelledby')).length;
} catch (error) { found.error = String(error); }
document.body.append(Object.assign(document.createElement('pre'), {id: 'found', textContent: JSON.stringify(found)}));
