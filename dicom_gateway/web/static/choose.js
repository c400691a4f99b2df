"use strict";

// A choice counts at once; without this script there is a button.
document.addEventListener("change", (event) => {
  if (event.target.matches("select[data-submit]")) event.target.form.requestSubmit();
});
