"""Build the page with the generator's knobs, which runs in a browser, into build/playground/page.

`--check` serves it on this machine and moves a slider in a headless Chromium. The page fetches its Python, numpy and
scipy from the network; `--native` serves the same notebook by `marimo run`, without any.
"""

import argparse
import contextlib
import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "playground"
PORT = 8719
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1100,1000",
)  # fmt: skip


def build():
    """Make the wheel and export the notebook; the folder of the page."""
    shutil.rmtree(BUILD, ignore_errors=True)
    public = BUILD / "source" / "public"  # what lies there is copied beside the page
    public.mkdir(parents=True)
    notebook = shutil.copy(ROOT / "playground" / "playground.py", BUILD / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", public, ROOT], check=True)
    export = [sys.executable, "-m", "marimo", "export", "html-wasm", "--mode", "run", "--no-show-code", "--force"]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # the export looks for uv there
    command = [*export, notebook, "--output", BUILD / "page"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PATH": path})
    for path in (BUILD / "page").glob("*.md"):  # notes to developers of the exporter
        path.unlink()
    return BUILD / "page"


@contextlib.contextmanager
def serve(folder):
    """Serve a folder, or the notebook itself where there is none; its address."""
    if folder is None:
        command = [sys.executable, "-m", "marimo", "run", "--headless", "--no-token", "--port", str(PORT)]
        server = subprocess.Popen([*command, ROOT / "playground" / "playground.py"], stdout=subprocess.DEVNULL)
        stop = server.terminate
        for _ in range(300):  # it takes its time to start
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
                break
            time.sleep(0.1)
    else:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop = server.shutdown
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        stop()


READ = """
    const numbers = [...document.querySelectorAll("strong")].map(e => e.textContent).filter(t => t.endsWith("%"));
    const image = document.querySelector("img[src*=png]");
    return numbers.length && image ? [numbers[0], image.src] : null;
"""
SLIDER = 'return document.querySelector("marimo-slider").shadowRoot.querySelector("[role=slider]")'


def check(address, limit=300):
    """Turn off the smooth noise on the page in a headless Chromium, until figure and sentence have changed.

    Parameters
    ----------
    address : str
    limit : float
        Seconds for the page to come up, and again for it to change.

    Returns
    -------
    str, str
        The percentage in the sentence below the figure, before and after.
    """
    from selenium import webdriver  # what builds the page needs no browser
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    for flag in QUIET:
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(address)
        before = WebDriverWait(driver, limit).until(lambda driver: driver.execute_script(READ))
        driver.execute_script(SLIDER).send_keys(Keys.HOME)

        def has_changed(driver):
            now = driver.execute_script(READ)
            return now and now[0] != before[0] and now[1] != before[1] and now

        after = WebDriverWait(driver, limit).until(has_changed)
    except TimeoutException:
        raise SystemExit(
            f"{address}: nothing to see after {limit} seconds; {BUILD / 'playground.png'} is what was there"
        ) from None
    finally:
        BUILD.mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(BUILD / "playground.png"))
        driver.quit()
    return before[0], after[0]


def main(arguments=None):
    """Build, and check where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="drive the page in a headless Chromium")
    parser.add_argument("--native", action="store_true", help="check the notebook in marimo's own server instead")
    options = parser.parse_args(arguments)
    page = None if options.native else build()
    if page:
        print(f"wrote {page.relative_to(ROOT).as_posix()}; look at it: python -m http.server --directory {page}")
    if options.check or options.native:
        with serve(page) as address:
            before, after = check(address)
        print(f"without smooth noise {after} in place of {before} of the signals lie nearest to their own digit")


if __name__ == "__main__":
    main()
