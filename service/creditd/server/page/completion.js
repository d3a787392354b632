/* The credit of one completion: what is typed is asked about, and the answer is drawn. */

const COMPLETIONS = new URL("v1/credit/scar", location.href.replace(/[?#].*/, "")).href;
const SEGMENTATIONS = ["span", "sentence", "lines"];
const SPAN_CREDITS = ["auto", "shapley", "owen", "prefix", "leave_one_out", "uniform", "attention"];
let readingOf = null;

/** A service without a reward model says how to start one that has. */
function showModels(models) {
  const names = models.filter((model) => model.kind === "reward").map((model) => model.id);
  $("no-model").hidden = names.length > 0;
  $("ask-model").hidden = !names.length;
  for (const [id, options] of [["model", names], ["segmentation", SEGMENTATIONS], ["span-credit", SPAN_CREDITS]]) {
    $(id).replaceChildren(...options.map((one) => element("option", { textContent: one, value: one })));
  }
}

async function askModel() {
  if (readingOf) readingOf.abort();
  const mine = readingOf = new AbortController(), began = performance.now();
  const item = { prompt: $("prompt").value, completion: $("completion").value };
  const body = { model: $("model").value, items: [item], segmentation: { type: $("segmentation").value },
    credit: { type: $("span-credit").value } };
  $("completion-result").classList.add("old");
  say("completion-failure", "");
  say("completion-status", "The model reads …");
  let said = "No answer.", failure = "";
  try {
    const { ok, answer } = await fetched(COMPLETIONS, { method: "POST", body: JSON.stringify(body), signal: mine.signal,
      headers: { "Content-Type": "application/json" } });
    if (mine !== readingOf) return;
    const found = ok && answer.items ? answer.items[0] : null;
    if (found && found.status === "ok") {
      $("completion-credit").replaceChildren(creditOf(item, found));
      $("completion-result").hidden = false;
      $("completion-result").classList.remove("old");
      const { evaluations, from_cache: remembered } = answer.usage;
      said = `${plural(evaluations, "evaluation")}, ${remembered} remembered, ${(performance.now() - began).toFixed(0)} ms, request ${answer.request_id}`;
    } else {
      const errors = found ? [found.error] : answer.errors || [];
      said = `Refused${answer.code ? `: ${answer.code}` : ""}`;
      failure = errors.map(({ pointer, detail }) => (pointer ? `${pointer}: ${detail}` : detail)).join("; ") || answer.detail;
    }
  } catch (error) {
    if (mine !== readingOf) return;
    failure = `The service did not answer: ${error.message}`;
  }
  say("completion-status", said);
  say("completion-failure", failure);
}

$("ask-model").addEventListener("submit", (event) => {
  event.preventDefault();
  askModel();
});
$("ask-model").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask-model").requestSubmit();
});
for (const name of ["prompt", "completion", "model", "segmentation", "span-credit"]) {
  $(name).addEventListener("input", () => $("completion-result").classList.add("old"));
}
