"use strict";

// Key images open in a dialog; without this script the link opens the PNG itself.
(() => {
  const dialog = document.getElementById("enlarged");
  if (!dialog || !dialog.showModal) return;
  const image = dialog.querySelector("img");
  const caption = dialog.querySelector("p");

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-enlarge]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
      event.preventDefault();
      image.src = link.href;
      image.alt = link.querySelector("img").alt;
      caption.textContent = link.dataset.enlarge;
      dialog.showModal();
    } else if (event.target === dialog) {
      dialog.close();
    }
  });
})();
