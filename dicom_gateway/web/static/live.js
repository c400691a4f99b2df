"use strict";

// Refetches the page and swaps only the regions marked data-live whose HTML changed, so nothing flickers and the
// scroll position, the text being typed and an opened image stay.
(() => {
  const seconds = Number(document.body.dataset.refreshS);
  if (!seconds) return;
  const offline = document.getElementById("offline");
  const newer = document.getElementById("newer");
  const shown = new Map([...document.querySelectorAll("[data-live]")].map((region) => [region.id, region.innerHTML]));

  const swap = (page) => {
    for (const [id, html] of shown) {
      const old = document.getElementById(id);
      const fresh = page.getElementById(id);
      if (!fresh || fresh.innerHTML === html || old.contains(document.activeElement)) continue;
      shown.set(id, fresh.innerHTML);
      old.replaceChildren(...fresh.childNodes);
    }
  };

  // A first report replaces the waiting page; one that a person may be reading is only announced as superseded.
  const update = (page) => {
    const revision = document.body.dataset.revision;
    if (page.body.dataset.revision === revision) swap(page);
    else if (revision === "") location.reload();
    else newer.hidden = false;
  };

  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      update(new DOMParser().parseFromString(await answer.text(), "text/html"));
      offline.hidden = true;
    } catch {
      offline.hidden = false;
    }
  };

  setInterval(refresh, seconds * 1000);
  document.addEventListener("visibilitychange", refresh);
})();
