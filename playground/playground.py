"""The generator with its knobs as sliders: a page that runs in a browser, or `marimo run playground.py` here."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="MNIST-1D: the generator's knobs")


@app.cell
async def _():
    import sys

    import marimo as mo

    VERSION = "1.0.0"
    if sys.platform == "emscripten":  # in the browser; the wheel lies beside the page
        import micropip

        await micropip.install(str(mo.notebook_location() / "public" / f"mnist1d-{VERSION}-py3-none-any.whl"))
    import matplotlib.pyplot as plt
    import numpy as np
    from scipy.spatial.distance import cdist

    import mnist1d

    return VERSION, cdist, mnist1d, mo, np, plt


@app.cell
def _(mo):
    mo.md("""
    # How hard is MNIST-1D?

    A sample starts as the template of its digit, twelve numbers. It is padded, scaled, moved around, gets noise and a
    slope, and is resized to 40 numbers. Each slider is an argument of
    [`mnist1d.make_dataset`](https://github.com/scaling-down/mnist1d); they begin at the frozen dataset's values.
    """)
    return


@app.cell
def _(mnist1d, mo):
    start = mnist1d.get_dataset_args(as_dict=True)
    shown = {"show_value": True}
    knobs = mo.ui.dictionary(
        {
            "corr_noise_scale": mo.ui.slider(0, 1, 0.05, start["corr_noise_scale"], label="smooth noise", **shown),
            "iid_noise_scale": mo.ui.slider(0, 0.2, 0.01, start["iid_noise_scale"], label="rough noise", **shown),
            "shear_scale": mo.ui.slider(0, 2, 0.05, start["shear_scale"], label="shear", **shown),
            "scale_coeff": mo.ui.slider(0, 1, 0.05, start["scale_coeff"], label="scale", **shown),
            "max_translation": mo.ui.slider(1, 48, 1, start["max_translation"], label="translation", **shown),
            "padding": mo.ui.range_slider(36, 96, 1, value=start["padding"], label="padding", **shown),
            "seed": mo.ui.number(0, 10_000, 1, start["seed"], label="seed"),
        }
    )
    mo.hstack([mo.vstack(list(knobs.values())[:4]), mo.vstack(list(knobs.values())[4:])], justify="start", gap=3)
    return (knobs,)


@app.cell
def _(knobs, mnist1d, np, plt):
    data = mnist1d.make_dataset({**knobs.value, "num_samples": 500, "train_split": 1.0})
    fig, axes = plt.subplots(2, 5, figsize=(8, 4.2), sharey=True, layout="constrained")
    for digit, ax in enumerate(axes.flat):
        for signal in data["x"][data["y"] == digit][:3]:
            ax.plot(signal, np.arange(len(signal)), linewidth=1)
        ax.set(title=digit, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[0, 0].invert_yaxis()
    fig
    return (data,)


@app.cell
def _(cdist, data, mo, np):
    distance = cdist(data["x"], data["x"]) + np.diag(np.full(len(data["x"]), np.inf))  # [signal, signal]
    same = data["y"][distance.argmin(1)] == data["y"]
    mo.md(f"""
    Three signals of each digit. Of 500 signals, **{same.mean():.0%}** have the digit of the one nearest to them;
    by chance it would be 10%.
    """)
    return


if __name__ == "__main__":
    app.run()
