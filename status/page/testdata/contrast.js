// Contrast of every visible text (4.5:1, WCAG 1.4.3 without its exception for large text) and of every
// mark that carries meaning (3:1, WCAG 1.4.11) with what lies behind it.
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (css) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      layers.unshift(c);
      if (c[3] === 1) break;
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const found = {texts: 0, marks: 0, least: 99, bad: []};
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walk.nextNode()); ) {
    const e = n.parentElement;
    if (!n.nodeValue.trim() || e.closest('svg, script') || !e.checkVisibility() || !e.getClientRects().length) continue;
    const below = behind(e);
    const r = ratio(over(rgba(getComputedStyle(e).color), below), below);
    found.texts++;
    found.least = Math.min(found.least, r);
    if (r < 4.5) found.bad.push(`${r.toFixed(2)}:1 for "${n.nodeValue.trim().slice(0, 40)}"`);
  }
  for (const e of document.querySelectorAll('.mood, .swatch, .bar rect:not(.track), .chart path:not(.grid)')) {
    const s = getComputedStyle(e);
    const paint = e.ownerSVGElement ? s.fill : s.backgroundColor;
    const r = ratio(rgba(paint), behind(e.ownerSVGElement ? e.ownerSVGElement.parentElement : e.parentElement));
    found.marks++;
    if (r < 3) found.bad.push(`${r.toFixed(2)}:1 for the mark ${e.getAttribute('class')}`);
  }
  return {Texts: found.texts, Marks: found.marks, Least: found.least, Bad: found.bad};
})()
