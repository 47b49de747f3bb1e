// A 3D view of atoms on a canvas: no library, no network. viewer.py writes the page around it and the data:
// {elements: {symbol: [colour, radius]}, structures: [{text, symbols, kinds, size, edges, frames}]}, lengths
// in hundredths of an ångström from the middle. Each copy of this program starts the viewers that wait for it.
(() => {
  const SPHERE = 0.55, BOND = 1.15, START = turn([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 20, -12);

  function mix(rows, i, j, degrees) {
    const [c, s] = [Math.cos(degrees * Math.PI / 180), Math.sin(degrees * Math.PI / 180)], out = [...rows];
    [out[i], out[j]] = [rows[i].map((v, k) => c * v + s * rows[j][k]), rows[j].map((v, k) => c * v - s * rows[i][k])];
    return out;
  }

  function turn(rows, about_y, about_x) {  // rotation matrix, degrees
    return mix(mix(rows, 0, 2, about_y), 1, 2, -about_x);
  }

  function ball(colour) {  // a shaded sphere, drawn once for each element
    const image = document.createElement("canvas"), pen = image.getContext("2d");
    image.width = image.height = 96;
    const light = pen.createRadialGradient(34, 30, 2, 48, 48, 47);
    [[0, "#fff"], [0.25, colour], [0.8, colour], [1, "#333"]].forEach(([at, c]) => light.addColorStop(at, c));
    pen.fillStyle = light;
    pen.arc(48, 48, 47, 0, 7);
    pen.fill();
    return image;
  }

  function find_bonds(at, radii) {  // pairs closer than 1.15 times the sum of their radii
    const pairs = [];
    for (let i = 0; i < radii.length; i++) for (let j = 0; j < i; j++) {
      const apart = Math.hypot(at[3 * i] - at[3 * j], at[3 * i + 1] - at[3 * j + 1], at[3 * i + 2] - at[3 * j + 2]);
      if (apart < BOND * (radii[i] + radii[j])) pairs.push([i, j]);
    }
    return pairs;
  }

  function start(root) {
    root.dataset.ready = "";
    const data = JSON.parse(root.querySelector("script").textContent), balls = {}, pointers = new Map();
    const [canvas, pick, play, slider, text] =
      ["canvas", "select", "button", "input", "output"].map((name) => root.querySelector(name));
    for (const symbol in data.elements) balls[symbol] = ball(data.elements[symbol][0]);
    let shown, view = START, zoom = 1, playing = false, waiting = false;

    function choose() {
      shown = data.structures[pick.value];
      shown.radii = shown.kinds.map((kind) => data.elements[shown.symbols[kind]][1]);
      const last = shown.frames.length - 1;
      [slider.max, slider.value, slider.hidden, play.hidden, text.value] = [last, 0, !last, !last, shown.text];
      move();
    }

    function move() {
      shown.bonds = find_bonds(shown.frames[slider.value], shown.radii);
      slider.setAttribute("aria-valuetext", `frame ${+slider.value + 1} of ${shown.frames.length}`);
      draw();
    }

    function draw() {  // at most once for each refresh of the screen
      if (!waiting) requestAnimationFrame(paint);
      waiting = true;
    }

    function paint() {
      const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio || 1];
      [canvas.width, canvas.height, waiting] = [width * ratio, height * ratio, false];
      const at = shown.frames[slider.value], unit = 0.47 * zoom * Math.min(width, height) / shown.size;
      const project = (p) => {  // x and y on the screen, scale, depth
        const [x, y, z] = view.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);
        const near = unit * 5 / (5 - z / shown.size);
        return [near * x, -near * y, near, z];
      };
      const atoms = shown.radii.map((_, i) => project(at.slice(3 * i, 3 * i + 3)));
      const line = (a, b, colour, wide) => ({ depth: Math.min(a[3], b[3]) - 0.01, a, b, colour, wide });
      const items = atoms.map((p, i) => ({ depth: p[3], p, kind: shown.kinds[i], radius: shown.radii[i] }));
      items.push(...shown.bonds.map(([i, j]) => line(atoms[i], atoms[j], "#8a8a8a", 22)));
      const ink = getComputedStyle(root).color;  // follows the theme
      items.push(...shown.edges.map((e) => line(project(e.slice(0, 3)), project(e.slice(3)), ink, 0)));
      pen.setTransform(ratio, 0, 0, ratio, ratio * width / 2, ratio * height / 2);
      for (const item of items.sort((one, two) => one.depth - two.depth)) (item.p ? sphere : stroke)(item);
      pen.fillStyle = ink;
      pen.font = "14px sans-serif";
      shown.symbols.forEach((symbol, k) => {  // the key to the colours, in the upper left corner
        sphere({ p: [12 - width / 2, 14 + 20 * k - height / 2, 1], kind: k, radius: 7 / SPHERE });
        pen.fillText(symbol, 24 - width / 2, 19 + 20 * k - height / 2);
      });
    }

    function sphere({ p: [x, y, scale], kind, radius }) {
      const r = SPHERE * radius * scale;
      pen.drawImage(balls[shown.symbols[kind]], x - r, y - r, 2 * r, 2 * r);
    }

    function stroke({ a, b, colour, wide }) {
      [pen.strokeStyle, pen.globalAlpha, pen.lineWidth] = [colour, wide ? 1 : 0.5, Math.max(1, wide * a[2])];
      pen.stroke(new Path2D(`M${a[0]} ${a[1]}L${b[0]} ${b[1]}`));
      pen.globalAlpha = 1;
    }

    const pen = canvas.getContext("2d");
    const rotate = (y, x) => { view = turn(view, y, x); draw(); };
    const enlarge = (factor) => { zoom = Math.min(20, Math.max(0.2, zoom * factor)); draw(); };
    const reset = () => { [view, zoom] = [START, 1]; draw(); };
    const tick = () => {
      if (!playing || !root.isConnected) return;
      slider.value = (+slider.value + 1) % shown.frames.length;
      move();
      setTimeout(tick, 80);
    };
    const toggle = () => {
      [playing, play.textContent] = playing || shown.frames.length < 2 ? [false, "Play"] : [true, "Pause"];
      tick();
    };
    const keys = {
      ArrowLeft: () => rotate(-10, 0), ArrowRight: () => rotate(10, 0), ArrowUp: () => rotate(0, -10),
      ArrowDown: () => rotate(0, 10), "+": () => enlarge(1.2), "-": () => enlarge(1 / 1.2), 0: reset, " ": toggle,
    };
    const apart = ([one, two] = pointers.values()) => two ? Math.hypot(one.x - two.x, one.y - two.y) : 0;
    const on = (target, name, act) => target.addEventListener(name, act, { passive: false });

    on(pick, "change", () => { if (playing) toggle(); choose(); });
    on(slider, "input", move);
    on(play, "click", toggle);
    on(canvas, "dblclick", reset);
    on(canvas, "keydown", (e) => { if (keys[e.key] && !e.ctrlKey) { e.preventDefault(); keys[e.key](); } });
    on(canvas, "wheel", (e) => {  // only once clicked: a page must scroll past
      if (document.activeElement !== canvas && !e.ctrlKey) return;
      e.preventDefault();
      enlarge(Math.exp(-0.0015 * e.deltaY));
    });
    on(canvas, "pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); pointers.set(e.pointerId, e); });
    ["pointerup", "pointercancel"].forEach((name) => on(canvas, name, (e) => pointers.delete(e.pointerId)));
    on(canvas, "pointermove", (e) => {
      const last = pointers.get(e.pointerId), before = apart();
      if (!last) return;
      pointers.set(e.pointerId, e);
      if (pointers.size > 1) enlarge(apart() / (before || 1));
      else rotate(0.5 * (e.x - last.x), 0.5 * (e.y - last.y));
    });
    new ResizeObserver(draw).observe(canvas);
    new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme", "class"] });
    choose();
  }

  document.querySelectorAll(".structure-viewer:not([data-ready])").forEach(start);
})();
