"""Gradio's own scripts as they are served, without four costs that grow with the page or never end.

- With every event Gradio 6.31 tells every component that any event has ever written or read how loading goes: only what
  has changed is told.
- It looks each of them up by walking through the whole page: what was looked up once is known. Both together took 60 to
  150 ms an event.
- At the start each component looks through all events for its own: they are sorted once.
- The seconds that the page's own loading takes are counted on, 60 times a second, for good: no longer once what shows
  them is gone.

Where a script is not the one that is known here, it is served as it is.
"""

import gzip
import re
from pathlib import Path

import gradio

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
_TELL = (
    "await Promise.all(Object.entries(this.loading_stati.current).map(([e,t])=>"
    "this.update_state_cb(Number(e),{loading_status:t},!1)))"
)
_TELL_CHANGED = (
    "const told=this.workbenchTold??=new Map;"
    "await Promise.all(Object.entries(this.loading_stati.current).map(([e,t])=>{const now=JSON.stringify(t);"
    "if(told.get(e)!==now){told.set(e,now);return this.update_state_cb(Number(e),{loading_status:t},!1)}}))"
)
_FIND = (
    "function Z(e,t){if(e.id===t)return e;"
    "if(e.children)for(let n of e.children){let e=Z(n,t);if(e)return e}return null}"
)
# a tree that is built anew has another root, or other nodes: gr.render, which exchanges some, is not used
_FIND_KNOWN = (
    "var workbenchKnown=new WeakMap,workbenchEvents=new WeakMap;function Z(e,t){let known=workbenchKnown.get(e);"
    "known||workbenchKnown.set(e,known=new Map);let node=known.get(t);if(node)return node;"
    "const find=e=>{if(e.id===t)return e;"
    "if(e.children)for(let n of e.children){let e=find(n);if(e)return e}return null};"
    "node=find(e);node&&known.set(t,node);return node}"
)
_COUNT = "F(Pe,(performance.now()-w(de))/1e3),W&&ze()"
_COUNT_SHOWN = "F(Pe,(performance.now()-w(de))/1e3),W&&(U||performance.now()-w(de)<1e3)&&ze()"
_EVENTS = (
    "find_attached_events(e,t){let n=t.filter(t=>t.targets.find(([t])=>t===e.id))"
    ".map(t=>{let n=t.targets.find(([t])=>t===e.id);return n?n[1]:null}).filter(Boolean);"
    "return e.props.shared_props.attached_events=n,e}"
)
_EVENTS_KNOWN = (
    "find_attached_events(e,t){let known=workbenchEvents.get(t);if(!known){workbenchEvents.set(t,known=new Map);"
    "for(const one of t){const seen=new Set;for(const[id,name]of one.targets)if(!seen.has(id)){seen.add(id);"
    "if(name){known.has(id)||known.set(id,[]);known.get(id).push(name)}}}}"
    "return e.props.shared_props.attached_events=[...known.get(e.id)||[]],e}"
)
CHANGES = (  # (script, what it says, what is served instead)
    ("Blocks", _TELL, _TELL_CHANGED),
    ("core", _FIND, _FIND_KNOWN),
    ("core", _EVENTS, _EVENTS_KNOWN),
    ("statustracker", _COUNT, _COUNT_SHOWN),
)


def quick_scripts() -> dict[str, bytes]:
    """`{path: script}` of Gradio's scripts that are served otherwise than they are."""
    scripts = {}
    for name, old, new in CHANGES:
        for file in ASSETS.glob(f"{name}-*.js"):
            path = f"/assets/{file.name}"
            text = scripts.get(path) or file.read_text("utf-8")
            if text.count(old) == 1:
                scripts[path] = text.replace(old, new)
    return {path: text.encode() for path, text in scripts.items()}


class QuickScripts:
    """Serves `quick_scripts` in the place of Gradio's."""

    def __init__(self, app):
        self.app, self.scripts = app, {path: gzip.compress(script) for path, script in quick_scripts().items()}

    async def __call__(self, scope, receive, send):
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "GET" else ""
        packed = self.scripts.get(path[max(0, path.rfind("/assets/")) :])  # a proxy's prefix may stand before it
        if packed is None:
            await self.app(scope, receive, send)
            return
        wanted = b"".join(value for key, value in scope["headers"] if key.lower() == b"accept-encoding")
        zipped = re.search(rb"\bgzip\b", wanted) is not None
        body = packed if zipped else gzip.decompress(packed)
        headers = [
            (b"content-type", b"text/javascript; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-cache"),  # the name says nothing of what is changed here
            (b"vary", b"accept-encoding"),
            *([(b"content-encoding", b"gzip")] if zipped else []),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
