// The browser of units: map, table and details of one unit.
{
  const about = read("about"), units = about.units;
  const strongest = units.map(({ pitch }) => pitch.length && Math.max(...pitch) > 0 ? pitch.indexOf(Math.max(...pitch)) : -1);
  const pitchName = (unit) => about.pitchClasses[strongest[unit]] ?? "";
  const share = (unit) => Object.values(units[unit].share)[0];
  const clipsOf = (unit) => units[unit].clips.map(([sound, from, to], i) =>
    player.button({ sound, from, to }, `unit ${unit}, clip ${i + 1}: ${about.tracks[sound]}`));
  const pitchBars = (unit, size) => bars(units[unit].pitch,
    `pitch classes of unit ${unit}, %: ${units[unit].pitch.map((value, i) => `${about.pitchClasses[i]} ${value}`).join(", ")}`,
    { top: strongest[unit], ...size });
  const loudBars = (unit, size) => bars(units[unit].loud,
    `loudness of unit ${unit}, % per step: ${units[unit].loud.map((value, i) => `${about.loudness[i]} dB ${value}`).join(", ")}`, size);
  const spectrumBars = (unit, size) => bars(units[unit].spectrum, `mean log-mel spectrum of unit ${unit}, 20 Hz to 8 kHz`, size);

  let chosen = null, table;

  const map = new PointMap(find("#map"), units.map(({ x, y }, unit) =>
    ({ x, y, name: `unit ${unit}: ${+share(unit).toPrecision(3)} %, ${pitchName(unit) || "no pitch"}, ${units[unit].db ?? "–"} dB` })),
  "Map of units", choose);

  function row(unit) {
    const { share: shares, db, ms, near } = units[unit];
    const cell = (...children) => make("td", {}, ...children), number = (value) => make("td", { class: "number" }, value ?? "–");
    const link = (other) => make("button", { type: "button", "aria-label": `choose unit ${other}`, onclick: (event) => { event.stopPropagation(); choose(other); } }, other);
    const tr = make("tr", { onclick: () => choose(unit) },
      make("td", { class: "number" }, link(unit)), number(share(unit).toPrecision(3)),
      units[unit].pitch.length ? make("td", { title: pitchName(unit) }, pitchBars(unit)) : cell("–"), number(db?.toFixed(1)),
      units[unit].loud.length ? cell(loudBars(unit)) : cell("–"), units[unit].spectrum.length ? cell(spectrumBars(unit)) : cell("–"),
      number(ms?.toFixed(1)), cell(...clipsOf(unit)), cell(...near.map(link)));
    tr.classList.toggle("chosen", unit === chosen);
    return tr;
  }

  function choose(unit) {
    chosen = unit;
    const { near, distance, clips, share: shares, db, ms } = units[unit];
    map.mark(unit, near);
    const canvas = make("canvas", { class: "spectrogram", role: "img", "aria-label": `spectrogram of a clip of unit ${unit}` });
    const note = make("p", { class: "note" });
    const buttons = clips.map(([sound, from, to, begin, end], i) => {
      const made = player.button({ sound, from, to }, `unit ${unit}, clip ${i + 1}: ${about.tracks[sound]}`);
      made.addEventListener("click", () => draw(canvas, note, clips[i]));
      return made;
    });
    const figure = (title, drawn) => make("figure", {}, make("figcaption", {}, title), drawn);
    const wide = { width: 260, height: 50 };
    find("#detail").replaceChildren(
      make("h3", {}, `Unit ${unit}`),
      make("p", {}, `${Object.entries(shares).map(([split, value]) => `${+value.toPrecision(3)} % of ${split}`).join(", ")}` + (ms ? `; lasts ${ms} ms; median loudness ${db} dB` : "; not heard")),
      make("div", {}, ...buttons), canvas, note,
      ...(units[unit].pitch.length ? [
        ...(strongest[unit] < 0 ? [] : [figure(`pitch class, % (${units[unit].pitched} % of frames have one)`, pitchBars(unit, { ...wide, names: about.pitchClasses }))]),
        figure("loudness, dB", loudBars(unit, { ...wide, names: about.loudness.map((edge, i) => i % 2 ? "" : `${edge}`) })),
        figure("mean log-mel spectrum, 20 Hz to 8 kHz", spectrumBars(unit, wide)),
      ] : []),
      make("p", {}, "nearest units, with the distance of centroids:"),
      make("ol", { class: "near" }, ...near.map((other, i) => make("li", {},
        make("button", { type: "button", class: "name", onclick: () => choose(other) }, `unit ${other}`), ` ${distance[i].toPrecision(4)} `, ...clipsOf(other).slice(0, 2)))));
    if (clips.length) draw(canvas, note, clips[0]);
    else canvas.remove();
    table?.draw();
  }

  /** Draw a clip's spectrogram, with lines where the unit begins and ends. */
  async function draw(canvas, note, [sound, from, to, begin, end]) {
    const buffer = await player.buffer(sound), rate = buffer.sampleRate, size = 1024;
    to = Math.min(to, buffer.duration);
    const samples = buffer.getChannelData(0), columns = 200, rows = 96, low = 60, high = 7800;
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    const decibels = [];
    for (let column = 0; column < columns; column++) {
      const middle = Math.round((from + (to - from) * (column + 0.5) / columns) * rate);
      const power = spectrum(samples, middle - size / 2, size);
      for (let line = 0; line < rows; line++) {
        const bin = low * (high / low) ** (line / (rows - 1)) * size / rate, whole = Math.floor(bin);
        decibels.push(10 * Math.log10(power[whole] + (bin - whole) * (power[whole + 1] - power[whole]) + 1e-9));
      }
    }
    const loudest = Math.max(...decibels);
    decibels.forEach((value, i) => {
      const colour = rampColour(1 + (value - loudest) / 70).match(/\d+/g);
      image.data.set([...colour, 255], 4 * ((rows - 1 - i % rows) * columns + Math.floor(i / rows)));
    });
    context.putImageData(image, 0, 0);
    context.fillStyle = "#ff9a4d";
    for (const time of [begin, end]) context.fillRect(Math.round(columns * (time - from) / (to - from)), 0, 1, rows);
    note.textContent = `${about.tracks[sound]}: ${(to - from).toFixed(2)} s, 60 Hz to 7.8 kHz, colours over 70 dB; the unit is between the lines (${Math.round(1000 * (end - begin))} ms)`;
  }

  /** Power at the first size / 2 frequencies, by a radix-2 FFT of a Hann window. */
  function spectrum(samples, start, size) {
    const re = new Float64Array(size), im = new Float64Array(size), bits = Math.log2(size);
    for (let i = 0; i < size; i++) {
      let reversed = 0;
      for (let bit = 0; bit < bits; bit++) reversed |= ((i >> bit) & 1) << (bits - 1 - bit);
      re[reversed] = (samples[start + i] ?? 0) * (0.5 - 0.5 * Math.cos(2 * Math.PI * i / size));
    }
    for (let half = 1; half < size; half *= 2) {
      for (let k = 0; k < half; k++) {
        const c = Math.cos(-Math.PI * k / half), s = Math.sin(-Math.PI * k / half);
        for (let i = k; i < size; i += 2 * half) {
          const j = i + half, x = re[j] * c - im[j] * s, y = re[j] * s + im[j] * c;
          [re[j], im[j]] = [re[i] - x, im[i] - y];
          [re[i], im[i]] = [re[i] + x, im[i] + y];
        }
      }
    }
    return Float64Array.from({ length: size / 2 }, (_, i) => (re[i] ** 2 + im[i] ** 2) / size);
  }

  const colours = {
    pitch: () => map.colourByName(units.map((_, unit) => pitchName(unit)), "no pitch", about.pitchClasses),
    db: () => map.colourByNumber(units.map(({ db }) => db), "median loudness, dB"),
    share: () => map.colourByNumber(units.map((_, unit) => share(unit) > 0 ? Math.log10(share(unit)) : null), "log10 of the share of labels in %"),
    ms: () => map.colourByNumber(units.map(({ ms }) => ms), "mean run length, ms"),
  };
  find("#colour").addEventListener("change", (event) => colours[event.target.value]());
  colours.pitch();

  table = new SortedTable(find("#units"), units.map((_, unit) => ({
    unit, values: [unit, share(unit), strongest[unit], units[unit].db, "", "", units[unit].ms], node: () => row(unit),
  })));
  table.sort(1);
  find("#search").addEventListener("input", (event) => {
    const text = event.target.value.trim().toUpperCase().replace(/^UNIT /, "");
    const test = (unit) => /^\d+$/.test(text) ? `${unit}`.startsWith(text) : pitchName(unit) === text;
    table.filter(text && ((row) => test(row.unit)));
    map.filter(text && test);
  });
  choose(table.shown[0].unit);
}
