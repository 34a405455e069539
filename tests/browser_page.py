"""One page in headless Chromium, wide and narrow: what it logs, what it asks for, whether it runs over the side, and how it looks."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

WIDTHS = (1280, 390)


def chromium():
    """The browser of this machine (or `CHROMIUM`), None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@dataclass
class Seen:
    """What went wrong at one width; all empty on a good page."""

    width: int
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    overflow: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def faults(self):
        return [*self.console, *self.requests, *self.overflow, *self.unreachable]


OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= wide) return [];
  return [...document.body.querySelectorAll('*')]
    .filter(e => e.getBoundingClientRect().right > wide + 1 && !e.closest('.scroll, pre, .words, svg'))
    .slice(0, 5).map(e => `${e.tagName} ${e.className} "${(e.textContent || '').slice(0, 40)}" ends at ${e.getBoundingClientRect().right}`)
    .concat([`the page is ${document.documentElement.scrollWidth} px wide in a window of ${wide}`]);
}"""

# A box that scrolls must take the focus, and every link of the page must lead somewhere.
UNREACHABLE = """() => [
  ...[...document.querySelectorAll('*')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.tabIndex < 0)
    .map(e => `a scrolling ${e.tagName} ${e.className} that the keyboard cannot reach`),
  ...[...document.querySelectorAll('a[href^="#"]')]
    .filter(a => !document.getElementById(a.getAttribute('href').slice(1))).map(a => `a link to nothing: ${a.href}`),
]"""


def look(page_path, shots=None, *, dark=False):
    """Open a page at every width; screenshots (and one print) go to the folder `shots`.

    Returns:
        One `Seen` a width.
    """
    from playwright.sync_api import sync_playwright

    found = []
    url = Path(page_path).resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for width in WIDTHS:
            seen = Seen(width)
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
            page = context.new_page()
            page.on("console", lambda message, seen=seen: seen.console.append(f"console {message.type}: {message.text}"))
            page.on("pageerror", lambda error, seen=seen: seen.console.append(f"error: {error}"))
            page.on("request", lambda request, seen=seen: None if request.url == url else seen.requests.append(f"asked for {request.url}"))
            page.goto(url)
            for folded in page.locator("details").all():
                folded.evaluate("e => { e.open = true }")
            seen.overflow += page.evaluate(OVERFLOW)
            seen.unreachable += page.evaluate(UNREACHABLE)
            for folded in page.locator("details").all():
                folded.evaluate("e => { e.open = false }")
            if shots is not None:
                name = f"{Path(page_path).stem}-{width}{'-dark' if dark else ''}"
                page.screenshot(path=str(Path(shots) / f"{name}.png"), full_page=True)
                if width == WIDTHS[0] and not dark:
                    page.pdf(path=str(Path(shots) / f"{name}.pdf"), format="A4")
            found.append(seen)
            context.close()
        browser.close()
    return found


if __name__ == "__main__":
    for one in (*look(sys.argv[1], sys.argv[2]), *look(sys.argv[1], sys.argv[2], dark=True)):
        sys.stdout.write(f"{one.width}: {one.faults or 'no faults'}\n")
