// The page "Latent upscale": what gradio's components do not do.
// onUiLoaded, onUiTabChange, gradioApp, randomId and requestProgress are the WebUI's.

let latentUpscaleAsk = ["", ""];

function latentUpscaleElement(name) {
    return gradioApp().getElementById("latent_upscale_" + name);
}

// The values for the server: those that `count` components hold, with a new task's id as the first.
// What follows them are old results, which need not travel.
function latentUpscaleRun(values, count) {
    const task = randomId();
    requestProgress(task, latentUpscaleElement("results"), null, () => {});
    return [task, ...values.slice(1, count)];
}

// What the button in the list that was pressed last wants: an action and a model's id.
function latentUpscaleAsked() {
    return latentUpscaleAsk;
}

function latentUpscalePress(button) {
    const {action, model} = button.dataset;
    if (action === "delete" && !confirm("Delete the file of " + model + "?")) return;
    latentUpscaleAsk = [action, model];
    latentUpscaleElement(action === "fetch" ? "fetch" : "act").click();
}

onUiLoaded(() => {
    // On the document, because the page's HTML is made anew with every result.
    document.addEventListener("click", (event) => {
        const button = event.target.closest("button.latent_upscale_button");
        if (button) latentUpscalePress(button);
    });
    document.addEventListener("input", ({target}) => {
        const stage = target.closest(".latent_upscale_stage");
        if (stage) stage.style.setProperty("--at", target.value + "%");
    });
    document.addEventListener("change", ({target}) => {
        const slider = target.closest(".latent_upscale_slider");
        if (slider && target.dataset.side) {
            slider.querySelector("img." + target.dataset.side).src = target.value;
        }
    });
});

onUiTabChange(() => {
    const page = gradioApp().getElementById("tab_latent_upscale");
    if (page && page.style.display !== "none") latentUpscaleElement("opened").click();
});
