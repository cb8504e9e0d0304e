"""The report's style sheet: one set of names for colours, with values for light and for dark."""

STYLE = """
:root { color-scheme: light dark; --surface: #fbfbf9; --card: #ffffff; --ink: #1c1d20; --muted: #5d6067;
  --grid: #dedfdc; --router: #1f66d1; --bad: #c2571a; --good: #1f7f4c; }
@media (prefers-color-scheme: dark) { :root { --surface: #141518; --card: #1c1e22; --ink: #ececee; --muted: #a3a7b0;
  --grid: #35383f; --router: #72a8ff; --bad: #f29a5c; --good: #63c993; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--surface); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.muted, figcaption { color: var(--muted); font-size: .9rem; text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .85rem; }
figure { margin: .6rem 0; background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; }
figure { padding: .8rem; }
figcaption { margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
svg text { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.wide svg { min-width: 36rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .8rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; } th[scope=row] { position: sticky; left: 0; background: var(--surface); }
th[scope=row], th.text, td.text { text-align: left; }
td.prompt { white-space: normal; min-width: 18rem; text-align: left; overflow-wrap: anywhere; }
td.wrapped { white-space: normal; text-align: left; min-width: 8rem; }
td.reason { white-space: normal; min-width: 14rem; text-align: left; }
.heat td { border: 1px solid var(--card); text-align: center; min-width: 3.2rem;
  background: color-mix(in srgb, var(--router) calc(var(--v) * 62%), var(--card)); }
.heat td.best { font-weight: 700; outline: 2px solid var(--ink); outline-offset: -2px; }
.heat thead th.up { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .5rem .2rem;
  max-height: 12rem; }
.heat small { color: inherit; opacity: .8; font-weight: 400; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1rem; font-size: .9rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { main { padding: 1rem .8rem 3rem; } h1 { font-size: 1.3rem; }
  figure { padding: .5rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { body { background: none; } .card, figure, tr { break-inside: avoid; } }
"""
