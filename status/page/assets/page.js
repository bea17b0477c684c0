// Keeps <main> up to date: the server sends it rendered, and what differs is changed in place, so that
// focus, scrolling and open details stay. Without this script the page is right, but still.
'use strict';
(() => {
  const main = document.querySelector('main');
  const live = document.getElementById('live');
  const again = 5000; // ms before a refused stream is tried again
  let source = null;
  let timer = 0;

  const say = (text, mood) => {
    if (live.textContent !== text) live.textContent = text;
    live.className = 'live ' + mood;
  };

  const adapt = (old, next) => {
    if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName) {
      old.replaceWith(next);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue;
      return;
    }
    for (const a of next.attributes) {
      if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
    }
    for (const a of [...old.attributes]) {
      const users = a.name === 'open' && old.nodeName === 'DETAILS';
      if (!next.hasAttribute(a.name) && !users) old.removeAttribute(a.name);
    }
    adaptChildren(old, next);
  };

  const adaptChildren = (old, next) => {
    const nodes = [...next.childNodes];
    while (old.childNodes.length > nodes.length) old.lastChild.remove();
    nodes.forEach((n, i) => {
      if (i < old.childNodes.length) adapt(old.childNodes[i], n);
      else old.append(n);
    });
  };

  const close = () => {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  };

  const open = () => {
    close();
    source = new EventSource('/events' + location.search);
    source.onmessage = (e) => {
      say('Live', 'good');
      const next = new DOMParser().parseFromString(JSON.parse(e.data), 'text/html');
      adaptChildren(main, next.body);
    };
    source.onerror = () => {
      say('The agent does not answer; trying again', 'bad');
      if (source && source.readyState === EventSource.CLOSED) timer = setTimeout(open, again);
    };
  };

  // Another span is only another stream.
  document.addEventListener('click', (e) => {
    const a = e.target.closest('nav a');
    if (!a || e.ctrlKey || e.metaKey || e.shiftKey || e.button !== 0) return;
    e.preventDefault();
    history.replaceState(null, '', a.href);
    open();
  });

  document.addEventListener('visibilitychange', () => (document.hidden ? close() : open()));
  if (!document.hidden) open();
})();
