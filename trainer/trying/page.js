// What the page does without this: it sends the form, and is shown anew with the answer. With it the page stays where it is.
"use strict";

const form = document.getElementById("ask");
const answer = document.getElementById("answer");
const button = form.querySelector("button");
const named = button.textContent;
let waiting = false;

async function send() {
  if (waiting || !form.reportValidity()) return;
  waiting = true;
  form.setAttribute("aria-busy", "true");
  button.textContent = "Working …";
  try {
    const reply = await fetch("/", { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const text = await reply.text();
    const page = new DOMParser().parseFromString(text, "text/html");
    const found = page.getElementById("answer");
    if (!found) throw new Error(text);
    answer.replaceChildren(...found.childNodes);
    const said = page.querySelector("input[name=said]");
    if (said) {
      form.elements.said.value = said.value;
      if (reply.ok) form.elements.message.value = "";
      answer.lastElementChild?.scrollIntoView({ block: "nearest" });
    }
  } catch (error) {
    const line = document.createElement("p");
    line.className = "error";
    line.setAttribute("role", "alert");
    line.textContent = error instanceof TypeError ? "No answer: has `trainer try` ended?" : error.message;
    answer.replaceChildren(line);
  } finally {
    waiting = false;
    form.removeAttribute("aria-busy");
    button.textContent = named;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
form.addEventListener("keydown", (event) => {
  // While an input method composes a word, Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.matches("textarea")) {
    event.preventDefault();
    send();
  }
});
form.querySelector(".keys").hidden = false;
