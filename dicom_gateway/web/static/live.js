"use strict";

// Refetches the page and swaps only the regions marked data-live whose HTML changed, so nothing flickers and the
// scroll position, the text being typed and an opened image stay.
(() => {
  const seconds = Number(document.body.dataset.refreshS);
  if (!seconds) return;

  const swap = (page) => {
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (!fresh || fresh.innerHTML === old.dataset.served) continue;
      if (old.dataset.served === undefined && fresh.innerHTML === old.innerHTML) continue;
      if (old.contains(document.activeElement) && document.activeElement !== document.body) continue;
      old.dataset.served = fresh.innerHTML;
      const opened = new Set([...old.querySelectorAll("details[open][id]")].map((element) => element.id));
      old.replaceChildren(...fresh.childNodes);
      for (const id of opened) old.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
    }
  };

  const offline = document.getElementById("offline");
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
      offline.hidden = true;
    } catch {
      offline.hidden = false;
    }
  };

  setInterval(refresh, seconds * 1000);
  document.addEventListener("visibilitychange", refresh);
})();
