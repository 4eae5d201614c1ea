"""Looks: theme, style sheet, and the page's scripts."""

from pathlib import Path

import gradio as gr
import plotly

from workbench.ui.questions import script as questions
from workbench.ui.strings import COOKIE

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def theme() -> gr.themes.Base:
    """A quiet theme on system fonts, so that nothing is fetched from outside."""
    fonts = ["system-ui", "Segoe UI", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    base = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        spacing_size="sm",
        text_size="md",
        font=fonts,
        font_mono=mono,
    )
    return base.set(
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
        block_label_background_fill="*background_fill_secondary",
        block_label_text_color="*body_text_color",
        block_label_background_fill_dark="*background_fill_secondary",
        block_label_text_color_dark="*body_text_color",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        # at least 4.5:1 for all text
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        checkbox_background_color_selected="*primary_700",
        checkbox_background_color_selected_dark="*primary_700",
        checkbox_label_text_color_selected="white",
        checkbox_label_text_color_selected_dark="white",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        block_border_width="1px",
        block_border_color="*border_color_primary",
        block_shadow="none",
        input_border_width="1px",
        input_border_color="*border_color_primary",
        input_shadow="none",
        checkbox_border_width="1px",
        checkbox_border_color="*neutral_400",
        button_secondary_border_color="*border_color_primary",
        button_border_width="1px",
    )


# Fetched when the first chart has something to show: it takes the browser over half a second. No slash before the
# address: behind a proxy the page lies under a prefix.
PLOTLY_SCRIPT = f"""<script>
window.workbenchPlotly = () => {{
  if (document.getElementById('plotly-script')) return;
  const script = document.createElement('script');
  script.id = 'plotly-script'; script.src = 'gradio_api/file={PLOTLY}';
  document.head.appendChild(script);
}};
</script>"""


def first_script(default_language: str | None) -> str:
    """A script that must run before gradio's: the language (gradio reads `navigator.language` once) and the theme."""
    fallback = f"'{default_language}'" if default_language else "null"
    return f"""<script>
(() => {{
  const stored = document.cookie.match(/(?:^|; ){COOKIE}=([^;]+)/);
  const lang = stored ? stored[1] : {fallback};
  if (lang) {{
    const code = lang === 'zh' ? 'zh-CN' : 'en';
    Object.defineProperty(navigator, 'language', {{get: () => code}});
    Object.defineProperty(navigator, 'languages', {{get: () => [code]}});
    if (!stored) document.cookie = '{COOKIE}=' + lang + '; path=/; max-age=31536000; SameSite=Lax';
  }}
  const dark = localStorage.getItem('workbench_dark');
  const apply = () => {{ if (dark !== null && document.body) document.body.classList.toggle('dark', dark === '1'); }};
  document.addEventListener('DOMContentLoaded', apply); setTimeout(apply, 300); setTimeout(apply, 1200);
  window.workbenchLanguage = () => {{
    const now = (document.cookie.match(/(?:^|; ){COOKIE}=([^;]+)/) || [])[1] || (navigator.language.startsWith('zh') ? 'zh' : 'en');
    document.cookie = '{COOKIE}=' + (now === 'zh' ? 'en' : 'zh') + '; path=/; max-age=31536000; SameSite=Lax';
    location.reload();
  }};
  window.workbenchLink = (values) => {{
    const url = new URL(location.href);
    for (const [key, value] of Object.entries(values))
      value ? url.searchParams.set(key, value) : url.searchParams.delete(key);
    if (url.href !== location.href) history.replaceState(history.state, '', url);
  }};
  window.workbenchTheme = () => {{
    const on = document.body.classList.toggle('dark');
    localStorage.setItem('workbench_dark', on ? '1' : '0');
    window.dispatchEvent(new Event('workbench-theme'));
  }};
  // the whole of a name that its field, list or button cuts off
  document.addEventListener('mouseover', (event) => {{
    const node = event.target;
    if (!node.matches('input:not([type=password]), li, .token *, button, .wb-badge')) return;
    if (node.title && !node.dataset.whole) return;
    node.title = node.scrollWidth > node.clientWidth + 1 ? node.value || node.innerText || '' : '';
    node.dataset.whole = '1';
  }});
}})();
{questions()}
</script>"""


# Plotly.react on a node that stays keeps the user's zoom (uirevision) while points arrive
CHART_JS = """
const node = element.querySelector('.live-chart');
const draw = () => {
  if (!props.value) { if (window.Plotly) Plotly.purge(node); return; }
  if (!window.Plotly) { window.workbenchPlotly(); setTimeout(draw, 100); return; }
  const figure = JSON.parse(props.value);
  const color = getComputedStyle(document.body).getPropertyValue('--body-text-color') || '#333';
  figure.layout.font = {color: color, size: 12};
  figure.layout.paper_bgcolor = figure.layout.plot_bgcolor = 'rgba(0,0,0,0)';
  Plotly.react(node, figure.data, figure.layout, {responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']});
};
draw(); watch('value', draw); window.addEventListener('workbench-theme', draw);
// what is drawn while its tab is hidden has no size yet
new ResizeObserver(() => { if (window.Plotly && node.data && node.offsetWidth) Plotly.Plots.resize(node); }).observe(node);
"""

# What a run's end says: a line on the page for a while, and a notification of the system's when the page is not in
# front. gradio's own toasts come only from events that go through its queue.
NEWS_JS = """
watch('value', () => {
  if (!props.value) return;
  for (const line of JSON.parse(props.value)) {
    const box = document.createElement('div');
    box.className = 'wb-toast';
    box.textContent = line;
    document.body.appendChild(box);
    setTimeout(() => box.remove(), 15000);
    box.onclick = () => box.remove();
    if (window.Notification && Notification.permission === 'granted' && !document.hasFocus())
      new Notification('QLoRA Workbench', {body: line});
  }
});
"""

# Four steps for a first visit, in the page's language; they lead to the tabs, and are gone for good once dismissed.
GUIDE_JS = """
const steps = JSON.parse(props.value)[navigator.language.startsWith('zh') ? 'zh' : 'en'];
const box = element.querySelector('.wb-guide');
const show = () => {
  if (localStorage.getItem('workbench_guide')) { element.style.display = 'none'; return; }
  const head = document.createElement('b'); head.textContent = steps.title; box.appendChild(head);
  steps.steps.forEach(([tab, words], index) => {
    const button = document.createElement('button');
    button.type = 'button'; button.textContent = (index + 1) + '. ' + words;
    button.onclick = () => document.getElementById(`tab-${tab}-button`)?.click();
    box.appendChild(button);
  });
  const close = document.createElement('button');
  close.type = 'button'; close.className = 'close'; close.textContent = steps.close;
  close.onclick = () => { localStorage.setItem('workbench_guide', '1'); element.style.display = 'none'; };
  box.appendChild(close);
};
show();
"""

# Gradio makes a tab's parts when it is first shown. Here they are made as if it were, once Start can be pressed, in the
# browser's idle moments: nobody waits for them at the first visit.
AHEAD_JS = """
const later = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
const waiting = JSON.parse(props.value);
const make = () => {
  if (!waiting.length) return;
  trigger('gradio_tab_select', {component_id: waiting.shift()});
  setTimeout(() => later(make), 150);
};
const ready = () => document.querySelector('#train-message .wb-note') && document.querySelector('#start:enabled');
const look = () => ready() ? later(make) : setTimeout(look, 200);
look();
"""

# Not in CSS: there gradio puts its own container before each selector, and these begin above it.
PHONE_STYLE = """<style>
@media (max-width: 768px) {
  .gradio-container { padding: 0 8px !important; }
  .fillable { padding: 8px 0 !important; }
  #topbar { gap: 6px; }
  #topbar > .block { min-width: 0 !important; }
  #topbar h1 { font-size: .95rem; white-space: nowrap; }
  #topbar button { max-width: 90px; min-width: 62px !important; padding: 2px 6px; font-size: .75rem; }
  #topbar:has(#who) { flex-wrap: wrap; }
  #topbar:has(#who) > :first-child { flex: 1 1 100%; }
  #who { flex: 1 1 90px; order: 2; }
  .wb-guide { font-size: .8rem; }
  #tabs .tab-container button { padding: 0 4px; }
  #tabs > .tab-wrapper, #run-parts .tab-wrapper, #data-parts .tab-wrapper { overflow-x: auto; }
  #drawer { display: block !important; }
  #chat-columns { flex-direction: column-reverse; }
  body:not(.drawer) #chat-side { display: none; }
  body.drawer #chat-columns { flex-direction: column; }
}
</style>"""

CSS = """
.gradio-container { width: 100% !important; max-width: 1680px !important; margin: 0 auto !important; padding: 0 20px !important; }
footer { display: none !important; }
input { text-overflow: ellipsis; }
.wrap-inner:not(:has(.token)) > .secondary-wrap:has(> .icon-wrap) > input { padding-right: 36px !important; }
ul.options li { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.token { max-width: 100%; min-width: 0; }
.token > span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#topbar { align-items: center; padding: 6px 0 0; flex-wrap: nowrap; }
#topbar h1 { font-size: 1.25rem; margin: 0; line-height: 1.3; }
#topbar p { margin: 0; opacity: .7; font-size: .85rem; }
#topbar button { max-width: 120px; }
#who { max-width: 240px; }
#who span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.html-container { padding: 0 !important; }
.gap-tight > .form, #tab-train .gap-tight { gap: 6px !important; }
.wb-details summary { cursor: pointer; font-size: .85rem; opacity: .8; }
.wb-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px 14px; background: var(--block-background-fill); }
.wb-note { padding: 8px 12px; border-radius: 8px; border: 1px solid var(--border-color-primary); white-space: pre-line; overflow-wrap: anywhere; }
.wb-note.ok { border-color: #0f9d7a66; background: #0f9d7a14; }
.wb-note.bad { border-color: #d1495b88; background: #d1495b1a; }
.wb-note.warn { border-color: #c98a1b88; background: #c98a1b1a; }
.wb-head { display: flex; gap: 10px; align-items: center; flex-wrap: wrap; margin-bottom: 8px; }
.wb-badge { padding: 2px 10px; border-radius: 999px; font-weight: 600; font-size: .8rem; color: #fff; background: #64748b; }
.wb-badge.running, .wb-badge.finished, .wb-badge.ready { background: #0d7d62; }
.wb-badge.starting, .wb-badge.stopping, .wb-badge.queued, .wb-badge.loading { background: #9a6700; }
.wb-badge.failed, .wb-badge.lost { background: #b3263b; }
.wb-bar { height: 8px; border-radius: 999px; background: var(--border-color-primary); overflow: hidden; }
.wb-bar > div { height: 100%; background: var(--primary-500); border-radius: 999px; transition: width .4s; }
.wb-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(110px, 1fr)); gap: 8px; margin-top: 10px; }
.wb-tile { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 6px 10px; min-width: 0; }
.wb-tile b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.wb-tile span { font-size: .75rem; opacity: .85; }
.wb-sub { font-size: .85rem; opacity: .85; }
button[role=tab][aria-selected=true] { color: var(--primary-700) !important; }
.dark button[role=tab][aria-selected=true] { color: var(--primary-300) !important; }
:is(a, button, input, textarea, summary, [tabindex]):focus-visible { outline: 2px solid var(--primary-600) !important; outline-offset: 1px; }
.wb-log { font-family: var(--font-mono); font-size: .78rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; height: 330px; overflow-y: auto; margin: 0; display: flex; flex-direction: column-reverse; padding: 10px 12px;
  border: 1px solid var(--border-color-primary); border-radius: 10px; background: var(--background-fill-secondary); }
.live-chart { height: 330px; width: 100%; }
#runs-charts .live-chart { height: 620px; }
#compare-chart .live-chart { height: 420px; }
#model-treemap .live-chart { height: 420px; }
#model-cache .live-chart { height: 210px; }
.wb-heading h2 { font-size: 1.05rem; font-weight: 600; margin: 14px 0 2px; }
.wb-layers { display: flex; flex-wrap: wrap; gap: 3px; margin: 6px 0; }
.wb-layers i, .wb-layers-legend i { display: inline-block; width: 17px; height: 34px; border-radius: 3px; background: #0369a1; }
.wb-layers-legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .8rem; }
.wb-layers-legend i { width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px; }
.wb-layers i.embedding, .wb-layers i.head, .wb-layers-legend i.embedding, .wb-layers-legend i.head { background: #64748b; }
.wb-layers i.mixture, .wb-layers-legend i.mixture { background: #4f46e5; }
.wb-layers i.window, .wb-layers-legend i.window { background-image: repeating-linear-gradient(45deg, transparent 0 3px, rgba(255,255,255,.55) 3px 5px); }
#model-map details { margin-top: 6px; font-size: .85rem; }
#model-map summary { cursor: pointer; }
#rope-table td:nth-child(2), #rope-table th:nth-child(2) { white-space: nowrap; }
#fields-table { min-width: 1240px; }
#fields-table td:first-child { min-width: 175px; }
#fields-table td:nth-child(2), #fields-table td:nth-child(n+5) { min-width: 92px; }
#fields-table td:nth-child(3), #fields-table td:nth-child(4) { min-width: 215px; }
#fields-table td:nth-child(2), #fields-table td:nth-child(n+5) { font-variant-numeric: tabular-nums; max-width: 170px; }
.wb-group th { background: var(--background-fill-secondary); }
.wb-table { border-collapse: collapse; font-size: .85rem; width: 100%; }
.wb-table th, .wb-table td { border: 1px solid var(--border-color-primary); padding: 4px 8px; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
#runs-table { max-height: 360px; overflow: auto !important; }
.wb-runs tr[data-run] { cursor: pointer; }
.wb-runs tr[data-run]:hover td { background: var(--background-fill-secondary); }
.wb-runs tr[aria-selected=true] td { background: var(--primary-500); background: color-mix(in srgb, var(--primary-500) 18%, transparent); }
.wb-runs td, .wb-runs th { white-space: nowrap; padding: 3px 7px; }
.wb-runs td.wb-run-name { white-space: normal; min-width: 170px; }
.wb-runs thead th { position: sticky; top: 0; background: var(--background-fill-secondary); z-index: 1; }
.wb-runs .wb-group th { background: var(--background-fill-secondary); text-align: left; font-size: .8rem; cursor: default; }
.wb-tag.wb-of-group { border-radius: 4px; border-color: var(--primary-500); }
.wb-tag { display: inline-block; font-size: .72rem; padding: 0 7px; margin: 2px 4px 0 0; border-radius: 999px; border: 1px solid var(--border-color-primary); }
.wb-toast { position: fixed; right: 16px; bottom: 16px; max-width: 420px; z-index: 999; padding: 10px 14px; border-radius: 10px; cursor: pointer;
  border: 1px solid var(--primary-500); background: var(--block-background-fill); color: var(--body-text-color); box-shadow: 0 4px 16px #0004; }
.wb-look { position: relative; }
.wb-tokens { line-height: 1.9; overflow-wrap: anywhere; padding: 8px 2px; }
.tk { border-radius: 3px; padding: 1px 0; cursor: default; white-space: pre-wrap; border-bottom: 2px solid transparent; }
.tk[data-t] { cursor: pointer; }
.tk i { opacity: .75; font-style: normal; }
.tk.b0 { background: #d55e0066; border-bottom-color: #d55e00; }
.tk.b1 { background: #e69f0059; border-bottom-color: #e69f00; }
.tk.b2 { background: #f0e44240; border-bottom-color: #b5a900; }
.tk.b3 { background: #f0e4421c; }
.tk.p1 { background: #0072b22b; } .tk.p2 { background: #0072b255; border-bottom-color: #0072b2; } .tk.p3 { background: #0072b288; border-bottom-color: #56b4e9; }
.tk.m1 { background: #d55e002b; } .tk.m2 { background: #d55e0055; border-bottom-color: #d55e00; } .tk.m3 { background: #d55e0088; border-bottom-color: #d55e00; }
.tk:focus { outline: 2px solid var(--primary-500); }
.wb-legend { font-size: .78rem; display: flex; gap: 8px; flex-wrap: wrap; align-items: center; margin-top: 4px; }
.wb-legend .tk { padding: 0 6px; }
.wb-pop { position: absolute; z-index: 50; min-width: 220px; max-width: 340px; padding: 6px; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); color: var(--body-text-color); box-shadow: 0 4px 16px #0005; font-size: .8rem; }
.wb-pop-head { margin: 0 2px 4px; opacity: .85; }
.wb-pop button { position: relative; display: flex; justify-content: space-between; gap: 12px; width: 100%; padding: 2px 6px; border-radius: 4px; text-align: left; overflow: hidden; }
.wb-pop button:not([disabled]):hover { outline: 1px solid var(--primary-500); }
.wb-pop button i { position: absolute; left: 0; top: 0; bottom: 0; background: var(--primary-500); opacity: .22; }
.wb-pop button span { font-family: var(--font-mono); white-space: pre; overflow: hidden; text-overflow: ellipsis; }
.wb-pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
.wb-score { font-size: .72rem; opacity: .8; }
.wb-samples { margin: 8px 0 0; padding-left: 20px; font-size: .85rem; }
.wb-samples li { margin-bottom: 6px; overflow-wrap: anywhere; }
.wb-samples .differs b { color: #c2410c; } .dark .wb-samples .differs b { color: #fb923c; }
#contradiction td:nth-child(3), #contradiction td:nth-child(4) { min-width: 92px; }
.wb-verdict.ok b { color: #0072b2; } .wb-verdict.bad b { color: #c2410c; } .wb-verdict.warn b { color: #9a6700; }
.dark .wb-verdict.ok b { color: #56b4e9; } .dark .wb-verdict.bad b { color: #fb923c; } .dark .wb-verdict.warn b { color: #f0c040; }
tr.contradicts td { background: #d55e0022; }
.wb-wide { overflow-x: auto; } .wb-totals th, .wb-totals td { overflow-wrap: normal; }
.wb-row { margin-bottom: 10px; }
.wb-cells { display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 14px; align-items: start; }
.wb-cell { min-width: 0; max-height: 440px; overflow: auto; }
.wb-turn { border-left: 3px solid var(--border-color-primary); padding: 2px 10px; margin: 4px 0; overflow-wrap: anywhere; font-size: .9rem; }
.wb-turn.assistant { border-left-color: #0072b2; } .wb-turn.rejected { opacity: .65; border-left-style: dashed; } .wb-turn.tool { border-left-color: #a16207; }
.wb-turn > b { font-size: .75rem; opacity: .75; }
.wb-source { font-family: var(--font-mono); font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; }
.wb-row button.wb-link, td button.wb-link { background: none !important; border: 0 !important; box-shadow: none !important; padding: 0 !important; font-weight: 600; }
.wb-link { color: var(--link-text-color); text-decoration: underline; font-size: .85rem; cursor: pointer; }
.wb-cells .wb-tokens, .wb-row .wb-tokens { font-family: var(--font-mono); font-size: .82rem; }
.tk[data-id] { border-right: 1px solid #80808059; }
#stats-tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tk.tr { background: #0072b23d; border-bottom-color: #0072b2; } .tk.mk { background: #80808014; }
.ids .tk[data-id] { display: inline-block; }
.ids .tk[data-id]::after { content: attr(data-id); font-size: .62rem; opacity: .75; vertical-align: sub; margin: 0 3px 0 1px; }
.wb-cut { color: #c2410c; border: 1px dashed #c2410c; border-radius: 4px; padding: 0 4px; margin: 0 3px; font-size: .78rem; white-space: nowrap; }
.dark .wb-cut { color: #fb923c; border-color: #fb923c; }
.wb-start { border-top: 2px solid var(--primary-500); margin-top: 6px; font-size: .75rem; opacity: .85; font-family: var(--font); }
#data-rows > .prose > .wb-legend, .wb-legend { margin-bottom: 6px; }
#data-checked .wb-tiles { margin-bottom: 10px; }
#data-drop { min-height: 96px; }
.wb-chips { font-size: .82rem; display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.wb-chip { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 1px 4px 1px 10px; background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.wb-chip button { border-radius: 999px; padding: 0 6px; cursor: pointer; color: var(--link-text-color); }
#train-side { position: sticky; top: 0; align-self: flex-start; max-height: 100vh; overflow-y: auto; flex-wrap: nowrap !important; }
#train-side > * { flex-shrink: 0 !important; }
.start-box { position: sticky; top: 0; z-index: 5; background: var(--background-fill-primary); }
#train-side .live-chart { height: 260px; }
#train-side .wb-cost-chart, #chat-cost-chart .wb-cost-chart { height: 190px; }
#train-side .wb-log { height: 220px; }
@media (max-width: 900px) {
  #train-columns { flex-direction: column; }
  #train-side { position: static; max-height: none; overflow: visible; }
  /* the monitor above the form while a run goes */
  #train-columns:has(.wb-badge.running, .wb-badge.starting, .wb-badge.stopping) #train-side { order: -1; }
}
.cm-line > span { color: var(--primary-700) !important; }
.dark .cm-line > span { color: var(--primary-300) !important; }
.wb-guide { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; padding: 8px 12px; border: 1px solid var(--primary-500); border-radius: 10px; font-size: .9rem; }
.wb-guide button { padding: 2px 10px; border-radius: 999px; border: 1px solid var(--border-color-primary); cursor: pointer; font-size: .85rem !important; font-weight: 400 !important; }
.wb-guide .close { margin-left: auto; }
#drawer { display: none; }
#run-yaml .cm-editor, #run-command .cm-editor { font-size: .8rem; }
#run-yaml { max-height: 360px; overflow: auto; }
"""
