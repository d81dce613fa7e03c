document.addEventListener("click", async (event) => {
  const code = event.target.closest(".copy");
  if (!code) return;
  try {
    await navigator.clipboard.writeText(code.textContent);
    code.classList.add("copied");
    setTimeout(() => code.classList.remove("copied"), 1500);
  } catch {
    // A sandboxed frame has no clipboard: the style sheet has selected the text.
  }
});
