"use strict";

// Keeps in this tab who verifies and what was chosen, and says beforehand what the button does. The form works without.
(() => {
  const form = document.getElementById("verify");
  if (!form) return;
  const button = document.getElementById("verify-button");
  // A second click would be answered that the report is verified already.
  form.addEventListener("submit", () => { button.disabled = true; });
  addEventListener("pageshow", () => { button.disabled = false; });

  const note = document.getElementById("verify-note");
  if (!note) return;
  const aboutThePerson = ["family_name", "given_name", "organization"];
  const [person, choices] = ["person", form.action];

  const fields = () => [...form.elements].filter((field) => field.name);
  const isChoice = (field) => !aboutThePerson.includes(field.name) && field.name !== "comment";
  const chosen = (field) => (["radio", "checkbox"].includes(field.type) ? field.checked && field.value : field.value);

  const tell = () => {
    const changes = fields().filter((field) => isChoice(field) && chosen(field)).length;
    const comment = form.elements.comment.value.trim() !== "";
    button.textContent = changes || comment ? "Review and verify" : "Verify";
    const typed = aboutThePerson.slice(0, 2).map((name) => form.elements[name]?.value.trim());
    const who = form.dataset.person || typed.filter(Boolean).join(", ");
    const what = changes
      ? `${changes} ${changes === 1 ? "answer" : "answers"} changed, all others confirmed as reported`
      : "Confirms every answer as reported";
    note.textContent = who ? `${what}, by ${who}.` : `${what}.`;
  };

  const keep = () => {
    const given = fields().filter(chosen).map((field) => [field.name, field.value]);
    const isPerson = ([name]) => aboutThePerson.includes(name);
    sessionStorage.setItem(person, JSON.stringify(given.filter(isPerson)));
    sessionStorage.setItem(choices, JSON.stringify(given.filter((pair) => !isPerson(pair))));
  };

  const restore = () => {
    for (const [name, value] of [person, choices].flatMap((key) => JSON.parse(sessionStorage.getItem(key) ?? "[]"))) {
      for (const field of fields().filter((one) => one.name === name)) {
        if (!["radio", "checkbox"].includes(field.type)) field.value = value;
        else if (field.value === value) field.checked = true;
      }
    }
  };

  form.addEventListener("submit", keep);
  addEventListener("pageshow", () => {
    restore();
    tell();
  });
  document.addEventListener("input", tell);
  // Enter on a choice would verify the report.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches(".verdict input, .pick input")) event.preventDefault();
  });
})();
