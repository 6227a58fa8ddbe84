"""Draw the demo's pictures and its short video loop (all our own making).

    python deploy/make_demo_media.py            # needs: playwright, a system Chromium, a CJK font, ffmpeg

Six product pictures (SVG), a poster, and a 24 s portrait loop with a burnt-in clock, as MP4 and as HLS. The
results are committed: nobody needs ffmpeg to run the demo.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "live" / "static" / "demo"
FRAMES_PER_S, SECONDS, WIDTH, HEIGHT = 12, 24, 540, 960

FONT = "font-family='PingFang SC,Noto Sans SC,Microsoft YaHei,WenQuanYi Zen Hei,sans-serif'"


def _picture(ground: str, body: str, name: str, note: str, ink: str) -> str:
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 480" role="img" aria-label="{name}">
<defs><radialGradient id="g" cx="50%" cy="38%" r="75%"><stop offset="0" stop-color="#fffaf0"/>
<stop offset="1" stop-color="{ground}"/></radialGradient></defs>
<rect width="480" height="480" fill="url(#g)"/>
<ellipse cx="240" cy="418" rx="150" ry="20" fill="#5b4630" opacity=".16"/>
{body}
<text x="240" y="262" text-anchor="middle" {FONT} font-size="40" font-weight="700" fill="{ink}">{name}</text>
<text x="240" y="300" text-anchor="middle" {FONT} font-size="19" letter-spacing="3" fill="{ink}" opacity=".75">{note}</text>
</svg>
"""


BAG = """<path d="M128 110 Q240 84 352 110 L366 396 Q240 424 114 396 Z" fill="{a}"/>
<path d="M128 110 Q240 84 352 110 L350 140 Q240 116 130 140 Z" fill="{b}"/>
<rect x="146" y="200" width="188" height="124" rx="10" fill="#fffdf7"/>
{grain}"""
BOTTLE = """<rect x="214" y="62" width="52" height="34" rx="8" fill="{b}"/>
<path d="M216 96 h48 v34 q74 28 74 92 v160 q0 26 -26 26 h-144 q-26 0 -26 -26 v-160 q0 -64 74 -92 Z" fill="{a}"/>
<path d="M160 214 q0 -44 44 -66" stroke="#fff" stroke-width="8" fill="none" opacity=".35" stroke-linecap="round"/>
<rect x="142" y="208" width="196" height="116" fill="#fffdf7"/>{grain}"""
BOX = """<path d="M120 150 L240 112 L360 150 L360 384 L240 420 L120 384 Z" fill="{a}"/>
<path d="M120 150 L240 186 L360 150 L240 112 Z" fill="{b}"/>
<rect x="136" y="206" width="208" height="118" rx="8" fill="#fffdf7"/>{grain}"""
JAR = """<rect x="142" y="98" width="196" height="46" rx="12" fill="{b}"/>
<path d="M134 152 h212 q18 0 18 22 v196 q0 46 -46 46 h-156 q-46 0 -46 -46 v-196 q0 -22 18 -22 Z" fill="{a}"/>
<rect x="134" y="206" width="212" height="118" fill="#fffdf7"/>{grain}"""


def _grains(colour: str, y: int = 360) -> str:
    spots = [(186, 0), (214, 14), (240, -4), (268, 12), (296, 2)]
    return "".join(
        f'<ellipse cx="{x}" cy="{y + dy}" rx="11" ry="5.5" transform="rotate({i * 37} {x} {y + dy})" fill="{colour}"/>'
        for i, (x, dy) in enumerate(spots)
    )


PRODUCTS = {
    "rice": _picture(
        "#e9dcc0",
        BAG.format(a="#c99a4b", b="#a5752c", grain=_grains("#fff3d6")),
        "有机大米",
        "五常 · 5 kg",
        "#6b4413",
    ),
    "porridge": _picture(
        "#ecd9cf",
        BAG.format(a="#a8604a", b="#86432f", grain=_grains("#ffe0c9")),
        "杂粮粥",
        "十谷 · 1.2 kg",
        "#6e2f1d",
    ),
    "soy": _picture(
        "#e3d6c8", BOTTLE.format(a="#4a2a1a", b="#a5752c", grain=""), "低钠酱油", "零添加 · 500 ml", "#3a1f12"
    ),
    "noodles": _picture(
        "#e8e4cd",
        BOX.format(a="#8f9a5b", b="#727d40", grain=_grains("#f3f0d2")),
        "有机挂面",
        "石磨 · 800 g",
        "#4a5222",
    ),
    "oil": _picture(
        "#f0e2bf", BOTTLE.format(a="#dba52f", b="#7a5a12", grain=""), "浓香菜籽油", "小榨 · 1.8 L", "#6b4a08"
    ),
    "sesame": _picture(
        "#ddd8d2",
        JAR.format(a="#57504a", b="#2f2a26", grain=_grains("#d8cfc4")),
        "黑芝麻糊",
        "九蒸 · 600 g",
        "#2f2a26",
    ),
}
GIFTS = {
    "kitchen-set": _picture(
        "#dfe5dc", BOX.format(a="#6f8f7b", b="#54735f", grain=""), "厨房三件套", "价值 59 元", "#2c4a38"
    ),
}

SCENE = """<!doctype html><meta charset="utf-8"><style>
*{margin:0;box-sizing:border-box} body{width:540px;height:960px;overflow:hidden;position:relative;
background:linear-gradient(#f6ead4 0,#efdcb9 52%,#b98a55 52.2%,#8c6238 100%);
font-family:"PingFang SC","Noto Sans SC","WenQuanYi Zen Hei",sans-serif}
.sun{position:absolute;left:-140px;top:-180px;width:640px;height:640px;border-radius:50%;
background:radial-gradient(#fff6dd 0,#fff6dd00 68%)}
.window{position:absolute;left:70px;top:110px;width:400px;height:300px;border:14px solid #d9b988;border-radius:18px;
background:linear-gradient(#cfe3dc,#eaf0dc 60%,#d8c886);overflow:hidden}
.window:after{content:"";position:absolute;left:50%;top:0;width:10px;margin-left:-5px;height:100%;background:#d9b988}
.hill{position:absolute;bottom:-90px;width:420px;height:220px;border-radius:50%;background:#b9b96d}
.brand{position:absolute;top:38px;left:0;right:0;text-align:center;font-size:34px;letter-spacing:14px;color:#6b4413;font-weight:700}
.card{position:absolute;left:50%;top:330px;width:330px;height:330px;margin-left:-165px;border-radius:28px;
box-shadow:0 26px 60px #3a240c55;overflow:hidden}
.card img{width:100%;height:100%;display:block}
.pot{position:absolute;left:40px;bottom:70px;width:200px;height:130px;background:#4b4039;border-radius:14px 14px 70px 70px}
.pot:before{content:"";position:absolute;left:-10px;top:-14px;width:220px;height:26px;border-radius:14px;background:#63554b}
.bowl{position:absolute;right:60px;bottom:80px;width:150px;height:76px;background:#f7efe0;border-radius:8px 8px 76px 76px}
.bowl:before{content:"";position:absolute;left:0;top:-22px;width:150px;height:44px;border-radius:50%;background:#fffdf5}
.steam{position:absolute;bottom:210px;width:26px;border-radius:20px;background:#fff;filter:blur(9px)}
.clock{position:absolute;left:16px;bottom:14px;font:600 22px/1 ui-monospace,monospace;color:#fff;background:#0008;padding:7px 10px;border-radius:8px}
.note{position:absolute;right:16px;bottom:14px;font-size:18px;color:#fff;background:#0006;padding:7px 10px;border-radius:8px}
</style><div class="sun"></div><div class="brand">穗里人家</div>
<div class="window"><div class="hill" style="left:-80px"></div><div class="hill" style="left:180px;background:#a7ad5e"></div></div>
<div class="pot"></div><div class="bowl"></div><div id="steams"></div>
<div class="card"><img id="a"></div><div class="card" id="next"><img id="b"></div>
<div class="clock" id="clock"></div><div class="note">演示画面</div>
<script>
const pictures=PICTURES, seconds=SECONDS, each=seconds/pictures.length;
const steams=document.getElementById("steams");
for(let i=0;i<6;i++){const s=document.createElement("div");s.className="steam";steams.append(s)}
window.draw=t=>{
 const n=Math.floor(t/each)%pictures.length, into=t%each, fade=Math.max(0,Math.min(1,(into-each+0.7)/0.7));
 a.src=pictures[n]; b.src=pictures[(n+1)%pictures.length];
 const ease=fade*fade*(3-2*fade), next=document.getElementById("next");
 next.style.opacity=ease; next.style.transform=`translateX(${(1-ease)*120}px) rotate(${(1-ease)*3}deg)`;
 document.querySelector(".card").style.transform=`translateX(${-ease*120}px) translateY(${Math.sin(t*Math.PI/4)*7}px) rotate(${-ease*3}deg)`;
 document.querySelector(".card").style.opacity=1-ease;
 [...steams.children].forEach((s,i)=>{const p=((t/3)+i/6)%1, pot=i%2===0;
  s.style.left=(pot?90+i*16:395+i*8)+Math.sin((p+i)*6.28)*10+"px"; s.style.height=70+p*60+"px";
  s.style.bottom=(pot?200:170)+p*150+"px"; s.style.opacity=.55*Math.sin(p*Math.PI)});
 const f=Math.floor(t*10)%10; clock.textContent="00:"+String(Math.floor(t)).padStart(2,"0")+"."+f;
};
</script>"""


def main() -> None:
    import json

    from playwright.sync_api import sync_playwright

    OUT.mkdir(parents=True, exist_ok=True)
    for name, svg in {**PRODUCTS, **GIFTS}.items():
        (OUT / f"{name}.svg").write_text(svg, "utf-8")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        frames = Path(folder)
        pictures = [(OUT / f"{name}.svg").as_uri() for name in PRODUCTS]
        page_file = frames / "scene.html"
        page_file.write_text(
            SCENE.replace("PICTURES", json.dumps(pictures)).replace("SECONDS", str(SECONDS)), "utf-8"
        )
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(page_file.as_uri())
        total = FRAMES_PER_S * SECONDS
        for number in range(total):
            page.evaluate("t => window.draw(t)", number / FRAMES_PER_S)
            page.screenshot(path=frames / f"{number:04d}.jpg", type="jpeg", quality=90)
            print(f"\rframe {number + 1}/{total}", end="", flush=True)
        print()
        page.evaluate("() => { window.draw(0); document.getElementById('clock').remove() }")
        page.screenshot(path=OUT / "poster.jpg", type="jpeg", quality=72)
        browser.close()
        source = ["-framerate", str(FRAMES_PER_S), "-i", str(frames / "%04d.jpg")]
        code = ["-c:v", "libx264", "-profile:v", "main", "-pix_fmt", "yuv420p", "-crf", "30", "-preset", "veryslow",
                "-g", str(FRAMES_PER_S * 4), "-an"]  # fmt: skip
        quiet = ["ffmpeg", "-y", "-loglevel", "error"]
        subprocess.run([*quiet, *source, *code, "-movflags", "+faststart", str(OUT / "loop.mp4")], check=True)
        subprocess.run(
            [*quiet, "-i", str(OUT / "loop.mp4"), "-c", "copy", "-f", "hls", "-hls_time", "4",
             "-hls_playlist_type", "vod", "-hls_segment_filename", str(OUT / "loop%d.ts"), str(OUT / "loop.m3u8")],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
