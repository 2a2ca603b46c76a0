"""The style of the report: quiet type, colour only for data, light or dark as the reader's system is."""

from __future__ import annotations

from trainer.report.charts import COLOURS

_LIGHTER = ("#5aa9e6", "#ff8a4c", "#3cc79a", "#e7a1c8", "#d9ab3c", "#7cc7f2", "#a9b1bc")
"""The charts' colours on a dark page, in their order."""


def _dark() -> str:
    """Return the rules that exchange the charts' colours, which stand in the pictures themselves."""
    rules = []
    for light, dark in zip(COLOURS, _LIGHTER, strict=True):
        rules.append(f'svg [stroke="{light}"] {{ stroke: {dark}; }} svg [fill="{light}"] {{ fill: {dark}; }}')
        rules.append(f'svg [style="fill:{light}"] {{ fill: {dark} !important; }}')
        rules.append(f'[style*="background:{light}"] {{ background: {dark} !important; }}')
    return "\n".join(f"  {rule}" for rule in rules)


STYLE = (
    """
:root { --ink: #1c2430; --soft: #5c6675; --rule: #e3e6ea; --paper: #fff; --ground: #f6f7f8; --grid: #eceef1; }
:root { --axis: #8a93a0; color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system,
  "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 10px; }
h2 { font-size: 19px; margin: 44px 0 12px; }
p { margin: 0 0 10px; max-width: 76ch; }
.headline { font-size: 18px; }
.meta, .note { color: var(--soft); font-size: 13px; max-width: none; }
section { margin-top: 26px; }
.sheet { background: var(--paper); border: 1px solid var(--rule); border-radius: 10px; padding: 8px 18px;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 9px 14px 9px 0; border-top: 1px solid var(--rule);
  vertical-align: baseline; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: 12.5px; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.amount { display: inline-block; height: 10px; border-radius: 2px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 18px; }
figure { margin: 0; background: var(--paper); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px 18px 8px; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 8px; }
figcaption b { display: block; color: var(--ink); font-size: 15px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-family: inherit; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .name { font-weight: 600; }
svg .grid-line { stroke: var(--grid); }
svg .zero { stroke: var(--axis); }
svg .tick { stroke: var(--axis); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .pale { opacity: .45; }
svg .band { opacity: .16; stroke: none; }
svg .faint { fill: none; stroke-width: 1; opacity: .22; }
svg .mark { stroke-dasharray: 2 3; opacity: .55; }
.bar { display: flex; gap: 1px; height: 24px; border-radius: 4px; overflow: hidden; }
.bar span { color: #fff; font-size: 12.5px; line-height: 24px; text-indent: 8px; min-width: 2px;
  overflow: hidden; white-space: nowrap; }
.mixture { display: grid; grid-template-columns: minmax(120px, max-content) minmax(90px, max-content) 1fr;
  gap: 8px 16px; align-items: center; padding: 8px 0; font-size: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: 13.5px;
  color: var(--soft); }
dt { color: var(--ink); font-weight: 600; }
dd { margin: 0; }
.verdict { border-left: 5px solid var(--axis); padding-left: 14px; margin: 0 0 18px; }
.verdict b { display: block; }
.verdict.holds { border-color: #009E73; }
.verdict.fails { border-color: #D55E00; }
.outcome { font-size: 12.5px; color: var(--soft); text-transform: uppercase; letter-spacing: .04em; }
.warning { background: var(--paper); border: 1px solid #B8860B; border-radius: 10px; padding: 10px 16px; }
@media print { body { background: #fff; } figure, tr { break-inside: avoid; } }
@media (max-width: 560px) { .grid { grid-template-columns: minmax(0, 1fr); } main { padding: 20px 12px; }
  figure { padding: 12px 8px 6px; } svg text { font-size: 14px; } h1 { font-size: 24px; }
  tbody th { white-space: normal; min-width: 110px; overflow-wrap: anywhere; }
  .mixture { grid-template-columns: 1fr 1fr; } .mixture .bar { grid-column: 1 / -1; height: auto; }
  .bar span { white-space: normal; text-indent: 0; padding: 3px 4px; line-height: 1.3; } }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #a3adba; --rule: #2d3542; --paper: #171c24; --ground: #0f1318; }
  :root { --grid: #262d38; }
"""
    + _dark()
    + "\n}\n"
)
